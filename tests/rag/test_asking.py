from __future__ import annotations

import pytest

from rag.asking import asked_about, asks_for_figure
from rag.figures import gives_figure
from rag.support import parts_of

QUESTIONS = {
    "en": ("How much bisoprolol does she take?", "Which drug was stopped?"),
    "es": ("¿Cuándo se operó?", "¿Quién la operó?"),
    "fr": ("Depuis quand a-t-il de la fièvre ?", "Pourquoi est-il venu ?"),
    "it": ("Quanto pesava il bambino?", "Chi lo ha visitato?"),
    "pt": ("Quantos dias esteve internada?", "Porque foi internada?"),
    "ro": ("De când are febră?", "Unde a fost operat?"),
    "de": ("Wie groß war der Herd?", "Welche Seite war betroffen?"),
    "nl": ("Wanneer was de operatie?", "Waarom is hij opgenomen?"),
    "ru": ("Сколько раз была рвота?", "Кто из родственников болел?"),
    "zh": ("什么时候做的手术？", "为什么停药？"),
    "ja": ("手術はいつですか？", "なぜ中止しましたか？"),
}


@pytest.mark.parametrize("language", QUESTIONS)
def test_a_question_asks_for_a_figure_in_its_own_words(language):
    of_a_figure, of_none = QUESTIONS[language]
    assert asks_for_figure(of_a_figure, language)
    assert not asks_for_figure(of_none, language)


def test_what_is_measured_asks_for_a_figure_and_is_asked_about():
    for question, language, kept in (
        ("metoprolol dose", "en", "dose"),
        ("Dosis von Abilify", "de", "Dosis"),
        ("肺結節の大きさは？", "ja", "大きさ"),
        ("华法林剂量", "zh", "剂量"),
    ):
        assert asks_for_figure(question, language)
        assert kept in asked_about(question, language)


def test_words_of_another_language_do_not_ask():
    assert not asks_for_figure("CAT scan result", "en")  # "cât" is Romanian for how much
    assert "CAT" in asked_about("CAT scan result", "en")


@pytest.mark.parametrize(
    ("question", "language", "about"),
    [
        ("有没有发热？", "zh", "发热"),
        ("有咯血吗？", "zh", "咯血"),
        ("白细胞是多少？", "zh", "白细胞"),
        ("什么时候做的肠镜？", "zh", "肠镜"),
        ("喫煙歴はありますか？", "ja", "喫煙歴"),
        ("体重は何kgですか？", "ja", "体重"),
        ("How often was Carafate given?", "en", "was Carafate given?"),
        ("La patiente a-t-elle des allergies ?", "fr", "La patiente a des allergies ?"),
    ],
)
def test_what_only_asks_is_not_asked_about(question, language, about):
    assert asked_about(question, language).split() == about.split()


def test_a_question_of_nothing_else_is_asked_as_it_is():
    assert asked_about("How much?", "en") == "How much?"
    assert asked_about("いつですか？", "ja") == "いつですか？"


@pytest.mark.parametrize(
    ("text", "gives"),
    [
        ("Shortness of breath.", False),
        ("- Valproate level", False),
        ("10. Мазок из зева на флору .", False),
        ("2,胰头体积稍增大", False),
        ("Known T2DM on metformin", False),
        ("HbA1c has risen", False),
        ("HbA1c 8.4 %", True),
        ("for three weeks", True),
        ("один раз в день", True),
        ("в 2014 году", True),
        ("体温３７．８℃", True),
    ],
)
def test_a_figure_is_said_by_what_measures_counts_or_dates(text, gives):
    assert gives_figure(text) is gives


def test_parts_of_a_long_sentence_hold_all_of_it_and_a_decimal_comma_cuts_none():
    long = "患者出现活动后气促，偶有心悸，无明显胸闷及心前区压榨感，无恶心呕吐，查体温37,8℃，血压169/69mmHg，未见异常。"
    parts = parts_of(long)
    assert len(parts) > 1
    assert "".join("".join(parts).split()) == long
    assert any("37,8℃" in part for part in parts)
    assert parts_of("No fever, no cough.") == []
