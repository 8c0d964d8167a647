"""The worked examples in the docstrings of `rag` are true."""

from __future__ import annotations

import doctest

import pytest

import rag.cite
import rag.cognates
import rag.context
import rag.fusion
import rag.langchain
import rag.phrases
from rag.cognates import cognate


@pytest.mark.parametrize(
    "module", [rag.cite, rag.cognates, rag.context, rag.fusion, rag.langchain, rag.phrases], ids=lambda m: m.__name__
)
def test_docstring_examples(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("クラリスロマイシン", "кларитромицин", True),
        ("ペニシリン", "Penicillin", True),
        ("оксалиплатин", "oxaliplatino", True),
        ("metotrexato", "Methotrexate", True),
        ("apixaban", "warfarin", False),
        ("prednisolone", "paracetamol", False),
        ("statin", "stent", False),
    ],
)
def test_drug_names_are_known_across_scripts(one, other, same):
    assert cognate(one, other) is cognate(other, one) is same
