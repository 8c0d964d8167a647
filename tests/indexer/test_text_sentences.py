"""Sentences: what must stay whole in each language, where they end, and exact spans for any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.records import Span
from indexer.text.rules import SUPPORTED
from indexer.text.sentences import split_sentences


def _split(text: str, language: str | None) -> list[str]:
    return [text[span.start : span.end] for span in split_sentences(text, language)]


# Each tuple is one text: its sentences, joined by one blank (none where the script uses none).
SENTENCES_OF = {
    "en": [
        ("Seen by Dr. Smith at 10.30 a.m. today.", "Takes 2.5 mg p.o. b.i.d. with food."),
        ("Hb was 9.8.", "Platelets fell, e.g. to 1.5 x 10.", "No bleeding!", "Is it HIT?"),
        ("Seen in the clinic of St. Mary by J. R. Smith vs. the team.", "Temp. was normal."),
        ("He waited...", "Then he left."),
        ("Pain, swelling, etc.", "The knee is stable."),
        ("Tests (CT, PET, etc. ) and asthma? , mild, were noted.", "No wheeze.", ",HOSPITAL COURSE: quiet."),
        ("He takes vitamin D.", "She has hepatitis C.", "J. Smith has seen both."),
        ("Insulin 38 IU/d.", "Pump tomorrow."),
        ('He said "I am fine."', "Then he fell."),
    ],
    "es": [
        (
            "Valorado por la Dra. García y el Sr. Pérez.",
            "Se pauta 1,5 mg v.o. cada 8 h.",
            "Control el 12.03.2024 en consulta.",
        ),
        ("Masa de 5 cm. de diámetro en riñón.", "Se remite a Urología."),
        ("Refiere tos, p.ej. nocturna, aprox. 3 días.", "No fiebre."),
    ],
    "fr": [
        ("Vu par le Dr. Martin et M. Dupont.", "Dose de 2,5 mg p.o. par jour.", "Mme. Roy est d'accord."),
        ("Lésion de 3 mm.", "Pas de fièvre."),
        ("Douleur, p. ex. nocturne, cf. courrier du 3.4.2024.", "Revoir dans un mois."),
    ],
    "de": [
        ("Aufnahme am 3. März 2024 durch Dr. med. Weber.", "Kreatinin 1,5 mg/dl bzw. stabil, z.B. nachts."),
        ("Vom 8.3. - 22.3.2025 stationär bei Z.n. Apoplex.", "Entlassung am 22. Mai."),
        ("Im 3. Lebensjahr OP.", "Danach beschwerdefrei, ggf. Kontrolle d.h. Labor.", "M. Parkinson bekannt."),
        ("Einnahme 2x tgl. Ramipril 2,5 mg, inkl. Diuretikum.", "RR gut."),
        ("Verbrennung 3. Grades.", "Stadium 3.", "Keine Metastasen."),
        ("Entlassen 15. 03. 2043 bei Niereninsuffizienz III. Grades.", "Z.n. rez. Embolie, niedermol. Heparin."),
    ],
    "it": [
        ("Visitato dal Dott. Rossi e dalla Prof.ssa Bianchi.", "Assume 2,5 mg per os.", "Controllo il 12.03.2024."),
        ("Lesione di 5 mm.", "Non febbre, dolore ecc.", "Si dimette."),
        ("Ridotti acido folico e vit. B12, Bil. dir. 0.85 mg/dL.", "Apiretico."),
    ],
    "nl": [
        (
            "Gezien door dr. Jansen en dhr. De Vries.",
            "Start 2,5 mg p.o. i.v.m. hypertensie, evt. ophogen.",
            "Controle op 12-03-2024.",
        ),
        ("Geen koorts, hoesten enz.", "Morgen lab."),
    ],
    "pt": [
        ("Observado pela Dra. Silva e pelo Sr. Costa.", "Toma 2,5 mg v.o. por dia.", "Consulta a 12.03.2024."),
        ("Nódulo de 5 mm.", "Sem febre, tosse, etc.", "Teve alta."),
    ],
    "ro": [
        (
            "Consultat de Dr. Popescu și d-na. Ionescu.",
            "Primește 2,5 mg p.o. pe zi.",
            "Control pe 12.03.2024 la ora 10.30.",
        ),
        ("Internat pe 3. martie cu dispnee, tuse etc.", "Externat ameliorat."),
    ],
    "ru": [
        ("Осмотрен д-р. Ивановым И. И. в 10.30.", "Получает 2,5 мг, т.е. таб. Бисопролол 1 р. в день."),
        ("Поступил 12.03.2024 г. с кашлем, одышкой и др. жалобами.", "Хр. Тонзиллит в анамнезе."),
        ("Серетид 50/25 по 1 инг. 2 раза в день, Аква Д3 5 кап. 1 раз в день.", "Кашель до сих пор.", "Хрипов нет."),
        ("Хронический дуоденит(Нр?),нестойкая ремиссия, ринит? , лёгкое течение.", "АГ 2 ст.,риск 3."),
        ("Ребенок от 1 берем.", "Вес 3090 г.", "Рост 50 см.", "Выписан домой."),
        ("Т. к. жалоб нет, выписан.", "Кожа чистая, слизистые влажные и т.д.", "Стул в норме."),
    ],
    "zh": [
        ("患者3天前出现腹痛。", "体温36.5℃，予5.0g静滴！", "现好转？"),
        ("WBC 12.3×10^9/L。", "给予阿莫西林0.5g p.o. b.i.d.治疗；症状缓解。"),
        ("医生说：“没事。”", "患者出院."),
    ],
    "ja": [
        ("症例は７０歳，男性．", "ＣＲＰは１．５ｍｇ／ｄｌであった．", "発熱なし。"),
        (
            "Ｈ．ｐｙｌｏｒｉ陽性，Ｔ．ｃｈｏｌ２５９．",
            "Ｎｏ．８リンパ節（Ｓ．４５．２．８）．",
            "前医はＰＰＩ．",
            "８月に改善した。",
        ),
        ("「痛い。」と話す。", "疼痛時は0.5mg投与！", "経過良好。"),
    ],
}
NO_BLANKS = {"zh", "ja"}


def test_every_supported_language_is_tested() -> None:
    assert set(SENTENCES_OF) == set(SUPPORTED)


@pytest.mark.parametrize(
    ("language", "sentences"), [(language, case) for language, cases in SENTENCES_OF.items() for case in cases]
)
def test_sentences_of_each_language(language: str, sentences: tuple[str, ...]) -> None:
    text = ("" if language in NO_BLANKS else " ").join(sentences)
    assert _split(text, language) == list(sentences)


@pytest.mark.parametrize("language", sorted(SUPPORTED))
@pytest.mark.parametrize(
    "whole",
    [
        "Ramipril 2.5 mg 1-0-1",
        "Ramipril 2,5 mg 1-0-1",
        "Temp 38.5, RR 120/80",
        "vom 12.03.2024 bis 15.03.2024",
        "2024.03.12 10:30",
        "pH 7.35, K+ 3.9, Hb 12.1 g/dl",
        "1. Aspirin 100 mg p.o.",
        "Aspirin 100 mg p.o. b.i.d. 5 days",
        "https://example.org/a.b?c=d",
        "... kept ... as ... is",
    ],
)
def test_doses_dates_and_decimals_stay_whole_in_every_language(language: str, whole: str) -> None:
    assert _split(whole, language) == [whole]


@pytest.mark.parametrize("language", ["en", "de", "ru", "zh", None])
def test_a_list_is_split_into_its_items_with_their_numbers(language: str | None) -> None:
    text = "Plan:\n1. Aspirin\n2. Statin. Stop at once\n- Diet\n• Sport\n3) Review"
    assert _split(text, language) == [
        "Plan:",
        "1. Aspirin",
        "2. Statin.",
        "Stop at once",
        "- Diet",
        "• Sport",
        "3) Review",
    ]


def test_numbers_of_a_list_in_one_line_stay_with_their_items() -> None:
    assert _split("Advised: 1. Rest at home. 2. Fluids. 3. Review.", "en") == [
        "Advised: 1. Rest at home.",
        "2. Fluids.",
        "3. Review.",
    ]


def test_wrapped_prose_goes_on_over_the_line_end() -> None:
    text = "The patient was admitted with severe pain in\nthe left knee after a fall.\nNo fracture was seen on\nX-ray"
    assert _split(text, "en") == [
        "The patient was admitted with severe pain in\nthe left knee after a fall.",
        "No fracture was seen on",
        "X-ray",
    ]
    wrapped = "患者３日前より腹痛が出現し徐々に増悪したため当院の救急外来を受診し精査加療目的に\n入院となった。"
    assert _split(wrapped, "ja") == [wrapped]


def test_line_ends_turned_into_commas_end_sentences() -> None:
    assert _split("PAIN:,  None.,PLAN: , Rest.,1.  Walk.,2.  Eat.", "en") == [
        "PAIN:,  None.,",
        "PLAN: , Rest.,",
        "1.  Walk.,",
        "2.  Eat.",
    ]


def test_sentences_glued_without_a_blank_are_split() -> None:
    assert _split("Хронический гастрит.Вторичные изменения.", "ru") == ["Хронический гастрит.", "Вторичные изменения."]
    assert _split("Node.js and www.Example.com", "en") == ["Node.js and www.Example.com"]


def test_initials_without_end_are_one_sentence() -> None:
    # With a look through the sentence at every stop this would take ten seconds.
    text = "A. " * 100_000
    assert split_sentences(text, "de") == [Span(0, len(text) - 1)]


def test_a_span_is_split_alone() -> None:
    text = "One here. Two there. Three."
    assert split_sentences(text, "en", Span(10, 20)) == [Span(10, 20)]
    assert split_sentences(text, "en", Span(4, 14)) == [Span(4, 9), Span(10, 13)]
    assert split_sentences(text, "en", Span(9, 10)) == []


def test_nothing_gives_nothing() -> None:
    assert split_sentences("", "en") == []
    assert split_sentences(" \n\t ", None) == []


FRAGMENTS = st.sampled_from(
    [
        "Dr.",
        "2.5",
        "mg",
        ".",
        "..",
        "。",
        "．",
        "！",
        "? ",
        " ",
        "\n",
        "\r\n",
        "\u2028",
        "1.",
        "A",
        "b",
        "の",
        "病",
        "д-р.",
        "т.е.",
        ",",
        ".,",
        "「",
        "」",
        "\u0301",
        "\U0001f600",
        "\u200d",
        ":",
        "- ",
        "12.03.",
        "März",
        "и",
    ]
)


@settings(deadline=None)  # the first text loads the rules
@given(
    text=st.one_of(st.text(max_size=60), st.lists(FRAGMENTS, max_size=25).map("".join)),
    language=st.sampled_from([None, "eu", *SUPPORTED]),
    data=st.data(),
)
def test_sentences_hold_every_character_once(text: str, language: str | None, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    spans = split_sentences(text, language, Span(start, end))
    at = start
    for span in spans:
        assert at <= span.start < span.end <= end
        assert not text[at : span.start].strip()
        assert text[span.start : span.end].strip() == text[span.start : span.end]
        at = span.end
    assert not text[at:end].strip()


def test_who_speaks_next_does_not_go_on_with_what_was_said() -> None:
    told = "患者：三个月的宝宝拉肚子，拉的便便里有奶瓣子还有粘液，但宝宝没有发烧，一直吃的母乳，有可能是肠炎吗"
    answered = "医生：有没有呕吐的症状"
    assert _split(f"{told}\n{answered}", "zh") == [told, answered]


def test_a_hard_break_of_markdown_ends_a_line_and_padding_does_not() -> None:
    first, second = "Chronic appears stable by history, no new focal neurological deficit", "3 health anxiety"
    assert _split(f"{first}  \n{second}", "en") == [first, second]
    padded = f"{first}     \n{second}"
    assert _split(padded, "en") == [padded]
