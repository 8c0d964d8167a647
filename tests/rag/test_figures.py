"""What a written sentence says in figures, held against what it cites, across languages, scripts and spellings."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.bundled import notes_path
from indexer.readers import read_sources
from indexer.text.sentences import split_sentences
from rag.figures import Said, denials, figures

SAME = [
    ("Creatinine was 1.3 mg/dL.", "Kreatinin 1,3 mg/dl."),
    ("クレアチニンは１．３ mg/dLでした。", "Creatinine 1.3 mg/dL"),
    ("Креатинин 1,3 мг/дл.", "Creatinine 1.3 mg/dL"),
    ("La creatinina subió de 1,3 a 3,1 mg/dl", "Cr 1.3 -> 3.1 mg/dl"),
    ("Kreatinin 2,50 mg", "créatinine 2.5 mg"),
    ("体温38.5℃，心率72次/分", "T 38,5 °C, HR 72 bpm"),
    ("阳性，89% 的患者", "89 % der Patienten"),
    ("On 2 March 2024 he fell.", "02.03.2024: Sturz"),
    ("2024 年 3 月 2 日跌倒", "2 марта 2024 г. упал"),
    ("令和6年3月2日に転倒", "2024-03-02"),
    ("El 2 de marzo de 2024", "March 2nd, 2024"),
    ("Am 2. März 2024", "le 2 mars 2024"),
    ("In 2024", "12.05.2024 Stent"),
    ("в марте 2024", "03/2024"),
    ("5月14日", "on 14 May"),
    ("1日1回5mg", "Warfarin 5 mg once daily in the evening."),
    ("Варфарин 4 мг 1 раз в день", "warfarina 4 mg/24 h por la noche"),
    ("1日1回", "Warfarin 5 mg 0-0-1 nach INR"),
    ("每日2次", "Se inicia apixabán 5 mg cada 12 horas."),
    ("2 раза в сутки", "apixaban 5 mg b.i.d."),
    ("1回1錠、1日3回", "1 tablet tid"),
    ("Platelets 150,000", "血小板15万/μL"),
    ("RBC 4.8 million", "赤血球480万"),
    ("WBC 12.5 x 10^9/L", "лейкоциты 12,5 × 10⁹/л"),
    ("BP 120/80 mmHg", "АД 120/80 мм рт. ст."),
    ("500 mg", "0,5 g"),
    ("7 days", "eine Woche"),
    ("2週間", "for two weeks"),
    ("1/2 tablet", "½ Tablette"),
    ("NYHA III", "心功能3级"),
    ("HbA1c 7.2%", "糖化血红蛋白 7.2 %"),
    ("eGFR 45 mL/min/1.73m²", "ДФГ 45 мл/мин/1,73 м2"),
    ("INR2.4", "INR: 2,4"),
    ("72岁", "72 M with chest pain"),
    ("1.250 mg", "1 250 mg"),
    ("12 IU", "12 ЕД"),
    ("SARS-CoV-2 positivo y fiebre", "SARS-CoV-2 positive"),
]
OTHER = [
    ("Creatinine was 3.1 mg/dL.", "Creatinine was 1.3 mg/dL."),
    ("クレアチニンは３．１ mg/dLでした。", "Creatinine 1.3 mg/dL"),
    ("Креатинин 3,1 мг/дл.", "Creatinine 1.3 mg/dL"),
    ("肌酐3.1 mg/dL", "肌酐1.3 mg/dL"),
    ("La creatinina fue 3,1 mg/dl", "クレアチニン１．３"),
    ("Kreatinin 13 mg/dl", "Kreatinin 1,3 mg/dl"),
    ("créatinine 0,13 mg", "créatinine 1,3 mg"),
    ("5 mL", "5 mg"),
    ("500 µg", "500 mg"),
    ("10 mg", "10 mg/kg"),
    ("5 mg/L", "5 mg/dL"),
    ("5 мг", "5 мл"),
    ("3 March 2024", "02.03.2024"),
    ("2 April 2024", "2024-03-02"),
    ("2023年3月2日", "2024-03-02"),
    ("令和5年3月2日", "2024-03-02"),
    ("In 2023", "2024-03-02"),
    ("3 weeks", "3 days"),
    ("1日2回", "once daily"),
    ("1日1回", "twice daily"),
    ("2 раза в день", "tid"),
    ("NYHA III", "NYHA II"),
    ("hernia L5", "hernia L4"),
    ("I48.1", "I48.0"),
    ("INR2.5", "INR 2.4"),
    ("1 mg", "2 mg as a single dose"),
    ("血小板15万", "血小板1.5万"),
    ("阳性，98%", "阳性，89%"),
]
DENIED = [
    ("No fever.", "en", "Temp 38.5, cough.", False),
    ("She is not taking warfarin.", "en", "Warfarin 5 mg daily.", False),
    ("Sin fiebre.", "es", "fever", False),
    ("无发热。", "zh", "Fever.", False),
    ("発熱なし。", "ja", "Fieber.", False),
    ("Лихорадки нет.", "ru", "Fieber", False),
    ("Kein Fieber.", "de", "Fieber.", False),
    ("Pas de fièvre.", "fr", "fever", False),
    ("No fever.", "en", "患者否认发热。", True),
    ("No known drug allergies.", "en", "NKDA", True),
    ("无发热。", "zh", "afebril", True),
    ("発熱なし。", "ja", "Denies fever.", True),
    ("Лихорадки нет.", "ru", "людей без температуры", True),
    ("Kein Fieber.", "de", "sin fiebre", True),
    ("Warfarin should no longer be given.", "en", "Apixaban statt Warfarin.", True),
    ("肾功能不全。", "zh", "renal insufficiency", True),
    ("1回1錠ずつ", "ja", "1 tab", True),
    ("Sin embargo, mejora.", "es", "better", True),
]


@pytest.mark.parametrize(("statement", "quote"), SAME)
def test_one_figure_in_two_spellings_is_one(statement: str, quote: str):
    assert Said([quote]).lacks(figures(statement)) == []


@pytest.mark.parametrize(("statement", "quote"), OTHER)
def test_another_figure_is_not_said(statement: str, quote: str):
    assert Said([quote]).lacks(figures(statement))


@pytest.mark.parametrize(("statement", "language", "quote", "said"), DENIED)
def test_a_denial_is_said_only_where_something_is_denied(statement: str, language: str, quote: str, said: bool):
    assert (Said([quote]).lacks(denials(statement, language)) == []) is said


def test_a_note_that_names_a_day_without_its_year_has_that_of_its_date():
    assert Said(["Sturz am 28.12."], ["2024-01-03"]).lacks(figures("Fell on 28 December 2023.")) == []
    assert Said(["Sturz am 28.12."], ["2024-01-03"]).lacks(figures("Fell on 28 December 2021."))
    assert Said(["Sturz."], ["2024-01-03"]).lacks(figures("Fell; note of 3 January 2024.")) == []
    assert Said(["Sturz."], ["2024", None]).lacks(figures("Fell on 3 January 2024."))


def test_every_sentence_of_the_bundled_notes_says_its_own_figures():
    n_figures = 0
    for note in read_sources([notes_path()]):
        for span in split_sentences(note.text, note.language)[::3]:
            sentence = note.text[span.start : span.end]
            wanted = figures(sentence) + denials(sentence, note.language or "en")
            assert Said([sentence]).lacks(wanted) == [], sentence
            n_figures += len(wanted)
    assert n_figures > 500


@given(value=st.decimals(min_value="0.01", max_value="999", places=2), other=st.integers(1, 99_000))
def test_a_number_is_told_from_every_other_number(value, other):
    said = Said([f"Kreatinin {str(value).replace('.', ',')} mg/dl"])
    assert said.lacks(figures(f"creatinine {value} mg/dL")) == []
    shifted = value + other / 100 if isinstance(value, float) else value + type(value)(other) / 100
    assert said.lacks(figures(f"creatinine {shifted} mg/dL"))


@given(st.text(alphabet="0123456789., /-:年月日次回x^*½²IVabmglhкг\n", max_size=60))
@example(f"0.{'0' * 40}1 h")
def test_any_text_says_its_own_figures(text):
    assert Said([text]).lacks(figures(text)) == []


def test_letters_without_end_are_read_in_one_go():
    assert Said(["A" * 500_000]).lacks(figures("5 mg"))
