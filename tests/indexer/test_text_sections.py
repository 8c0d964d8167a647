"""Section headers of each language as notes write them, and lines that look like headers and are none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.text.rules import SUPPORTED
from indexer.text.sections import split_sections


def _found(text: str, language: str | None) -> list[tuple[str | None, str | None]]:
    return [(section.key, section.title) for section in split_sections(text, language)]


LINES_OF = {
    "en": [
        ("Past Medical History:", "past_medical_history"),
        ("ALLERGIES: none", "allergies"),
        ("1. Impression", "impression"),
        ("O/E", "physical_examination"),
        ("Follow-up", "follow_up"),
        ("Follow\u2011up: in 2 weeks", "follow_up"),
        ("ASSESSMENT AND PLAN", "assessment_and_plan"),
    ],
    "es": [
        ("Antecedentes personales: HTA.", "past_medical_history"),
        ("MOTIVO DE CONSULTA", "chief_complaint"),
        ("Exploracion fisica:", "physical_examination"),
        ("Juicio clínico", "diagnosis"),
        ("Tratamiento al alta:", "discharge_medications"),
    ],
    "fr": [
        ("Antécédents : HTA", "past_medical_history"),
        ("MOTIF D’HOSPITALISATION", "chief_complaint"),
        ("Conduite à tenir :", "plan"),
        ("Examen clinique :", "physical_examination"),
        ("Traitement de sortie", "discharge_medications"),
    ],
    "de": [
        ("Vorgeschichte:", "past_medical_history"),
        ("Anamnese", "history_of_present_illness"),
        ("Procedere:", "plan"),
        ("HAUPT-UND NEBENDIAGNOSEN", "diagnosis"),
        ("Medikation bei Entlassung:", "discharge_medications"),
        ("Labor vom 03.04.2024:", "laboratory"),
    ],
    "it": [
        ("Anamnesi patologica remota: ipertensione", "past_medical_history"),
        ("Esame obiettivo", "physical_examination"),
        ("Terapia alla dimissione:", "discharge_medications"),
        ("Motivo del ricovero:", "chief_complaint"),
        ("Decorso postoperatorio", "hospital_course"),
    ],
    "nl": [
        ("Voorgeschiedenis:", "past_medical_history"),
        ("Reden van opname", "chief_complaint"),
        ("Lichamelijk onderzoek:", "physical_examination"),
        ("Conclusie/beleid:", "assessment_and_plan"),
        ("Ontslagmedicatie", "discharge_medications"),
    ],
    "pt": [
        ("Antecedentes pessoais:", "past_medical_history"),
        ("Queixa principal: dor", "chief_complaint"),
        ("EXAME FÍSICO", "physical_examination"),
        ("Medicação à alta:", "discharge_medications"),
        ("Hipótese diagnóstica:", "diagnosis"),
    ],
    "ro": [
        ("Antecedente personale patologice:", "past_medical_history"),
        ("Motivele internării", "chief_complaint"),
        ("EXAMEN CLINIC GENERAL:", "physical_examination"),
        ("Epicriza:", "hospital_course"),
        ("Tratament la externare", "discharge_medications"),
    ],
    "ru": [
        ("Анамнез заболевания: болен неделю", "history_of_present_illness"),
        ("ЖАЛОБЫ ПРИ ПОСТУПЛЕНИИ", "chief_complaint"),
        ("Перенесённые заболевания:", "past_medical_history"),
        ("РЕКОМЕНДАЦИИ", "plan"),
        ("УЗИ органов брюшной полости:", "imaging"),
    ],
    "zh": [
        ("過敏史：盤尼西林", "allergies"),
        ("理學檢查：兩側呼吸音清", "physical_examination"),
        ("【檢驗】", "laboratory"),
        ("出院診斷", "discharge_diagnosis"),
        ("過去病史：糖尿病", "past_medical_history"),
        ("既往史：高血压10年。", "past_medical_history"),
        ("主诉：胸痛3天", "chief_complaint"),
        ("【体格检查】T 36.5℃", "physical_examination"),
        ("出院带药：", "discharge_medications"),
        ("初步诊断", "diagnosis"),
    ],
    "ja": [
        ("【既往歴】高血圧", "past_medical_history"),
        ("主訴：胸痛", "chief_complaint"),
        ("■身体所見", "physical_examination"),
        ("＜退院時処方＞", "discharge_medications"),
        ("入院時現症：", "physical_examination"),
        ("Ｉｍｐｒｅｓｓｉｏｎ：", "impression"),
    ],
}

NOT_HEADERS_OF = {
    "en": [
        "The plan: none yet was made",
        "HEENT: normal.",
        "BP: 120/80",
        "- Analgesia:",
        "plan",
        "Seen 10:30 today",
        "NKDA",
    ],
    "es": ["Se realizó el siguiente tratamiento: reposo", "Nombre: Ignacio.", "TA: 120/80", "evolución"],
    "fr": ["Le traitement: aucun", "TA : 120/80", "Nom : Durand", "examen"],
    "de": ["Die Therapie: keine", "RR: 145/85 mmHg", "Cor: rein", "verlauf"],
    "it": ["La terapia: nessuna", "PA: 120/80", "Cuore: toni validi", "decorso"],
    "nl": ["Het beleid: geen", "RR: 120/80", "Cor: geen souffles", "beloop"],
    "pt": ["A conduta: nenhuma", "PA: 120/80", "Nome: Ana", "plano"],
    "ro": ["Un tratament: niciunul", "TA: 120/80", "Abdomen: suplu", "evoluție"],
    "ru": ["Его лечение: нет", "АД: 120/80", "Печень: не увеличена", "план"],
    "zh": ["医生：您好", "患者：嗯", "体温：36.5℃", "现在的治疗是这样的：没有"],
    "ja": ["患者：はい", "体温：36.5", "今回の治療について話した：なし", "血圧：120/80", "ＧＥＲを考慮しＰＰＩ等"],
}


def test_every_supported_language_is_tested() -> None:
    assert set(LINES_OF) == set(NOT_HEADERS_OF) == set(SUPPORTED)


@pytest.mark.parametrize(
    ("language", "line", "key"), [(language, *case) for language, cases in LINES_OF.items() for case in cases]
)
def test_a_header_opens_its_section(language: str, line: str, key: str) -> None:
    before, content = "0001", "\n0002 0003\n"
    text = f"{before}\n{line}{content}"
    sections = split_sections(text, language)
    assert [section.key for section in sections] == [None, key]
    assert sections[1].span.start == len(before) + 1
    assert sections[1].title is not None
    assert sections[1].title in line


@pytest.mark.parametrize(
    ("language", "line"), [(language, line) for language, lines in NOT_HEADERS_OF.items() for line in lines]
)
def test_what_only_resembles_a_header_opens_none(language: str, line: str) -> None:
    assert _found(f"0001\n{line}\n0002\n", language) == [(None, None)]


def test_run_on_headers_of_one_long_line() -> None:
    text = "PREOPERATIVE DIAGNOSIS:,  Hydroceles.,ANESTHESIA: , General.,1.  Done.,FINDINGS:,  Fluid.  PLAN: Rest."
    assert _found(text, "en") == [
        ("preoperative_diagnosis", "PREOPERATIVE DIAGNOSIS"),
        ("operative", "ANESTHESIA"),
        ("findings", "FINDINGS"),
        ("plan", "PLAN"),
    ]


def test_run_on_headers_in_han() -> None:
    text = "主诉：腹痛3天。现病史：3天前出现腹痛。既往史:体健 个人史：无烟酒史，家族史：无特殊。"
    assert [key for key, _ in _found(text, "zh")] == [
        "chief_complaint",
        "history_of_present_illness",
        "past_medical_history",
        "social_history",
        "family_history",
    ]


def test_brackets_anywhere_in_a_line() -> None:
    text = "【症例】70歳男性。【既往歴】高血圧。【家族の声】心配。"
    assert _found(text, "ja") == [
        ("case_report", "症例"),
        ("past_medical_history", "既往歴"),
        (None, "家族の声"),
    ]


def test_brackets_and_run_on_headers_of_one_line_keep_their_order() -> None:
    text = "入院。主訴：【検査】異常なし。既往歴：【家族歴】なし"
    assert [key for key, _ in _found(text, "ja")] == [
        None,
        "chief_complaint",
        "investigations",
        "past_medical_history",
        "family_history",
    ]


def test_soap_letters_count_only_in_company() -> None:
    assert _found("S: tired\nO: afebrile\nA: viral\nP: rest\n", "en") == [
        ("subjective", "S"),
        ("objective", "O"),
        ("assessment", "A"),
        ("plan", "P"),
    ]
    assert [key for key, _ in _found("＃＃　Ｓ\n痛い\n＃＃　Ｏ\n発赤あり\n", "ja")] == ["subjective", "objective"]
    assert _found("T: 36.5\nP: 80\nR: 16\n", "en") == [(None, None)]


def test_a_header_shaped_line_of_unknown_meaning_is_a_section_without_key() -> None:
    text = "Plan: rest\nThings the family asked:\nwhen home?\nNEUROVASCULAR CORNER\nall well\n"
    assert _found(text, "en") == [
        ("plan", "Plan"),
        (None, "Things the family asked"),
        (None, "NEUROVASCULAR CORNER"),
    ]


def test_capitals_say_nothing_in_a_note_written_in_capitals() -> None:
    text = "PATIENT SEEN IN CLINIC\nDOING WELL TODAY\nNO NEW COMPLAINTS AT ALL\n"
    assert _found(text, "en") == [(None, None)]


def test_a_bare_header_lends_its_key_to_an_unknown_one_below() -> None:
    text = "PHYSICAL EXAMINATION\nStanding upright:\nnormal gait\n"
    assert _found(text, "en") == [("physical_examination", "PHYSICAL EXAMINATION")]


def test_headers_of_english_are_known_in_every_language() -> None:
    assert _found("IMPRESSION: 特記すべき所見なし\n", "ja") == [("impression", "IMPRESSION")]
    assert _found("Hospital course: unauffällig\n", "de") == [("hospital_course", "Hospital course")]


@pytest.mark.parametrize("language", [None, "eu", "uk"])
def test_without_rules_all_known_headers_are_tried(language: str | None) -> None:
    assert _found("Voorgeschiedenis: x\n", language) == [("past_medical_history", "Voorgeschiedenis")]


def test_a_title_is_kept_as_written() -> None:
    assert _found("ＰＬＡＮ：rest\n", "en") == [("plan", "ＰＬＡＮ")]
    assert _found("**Plan** (today):\nrest\n", "en")[0][0] == "plan"
    assert _found("e\u0301volution\n", "fr") == [(None, None)]
    assert _found("E\u0301volution :\nfavorable\n", "fr") == [("evolution", "E\u0301volution")]


def test_the_colon_of_a_time_ends_no_title() -> None:
    assert _found("Signed 22/11/25 10:03\n", "en")[0][1] == "Signed 22/11/25 10:03"


def test_an_empty_note_has_no_section() -> None:
    assert split_sections("", "en") == []


PIECES = st.sampled_from(
    [
        *(line for cases in LINES_OF.values() for line, _ in cases),
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "【",
        "】",
        "：",
        ":",
        ".,",
        "。",
        "S:",
        "O:",
    ]
)


@settings(deadline=None)  # the first text loads the rules
@given(
    text=st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=12).map("".join)),
    language=st.sampled_from([None, "eu", *SUPPORTED]),
)
def test_sections_cover_the_text_without_gap_or_overlap(text: str, language: str | None) -> None:
    sections = split_sections(text, language)
    edges = [0, *(section.span.end for section in sections)]
    assert [section.span.start for section in sections] == edges[:-1]
    assert edges[-1] == len(text)
    assert all(section.span.start < section.span.end for section in sections)
    for section in sections:
        assert section.title is None or section.title in text[section.span.start : section.span.end]
        assert section.key is None or section.title
