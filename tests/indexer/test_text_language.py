"""Language identification: the supported languages, their neighbours, and texts that say nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.text.language import SUPPORTED, identify, identify_chunk, identify_question

NOTES = {
    "en": "The patient was admitted with chest pain. She denies fever and takes aspirin 81 mg daily.",
    "es": "Paciente de 65 años que acude por dolor torácico. Niega fiebre y toma aspirina 100 mg al día.",
    "fr": "Le patient est hospitalisé pour une douleur thoracique. Pas de fièvre, il prend de l'aspirine.",
    "de": "Der Patient wurde wegen Brustschmerzen aufgenommen. Kein Fieber, er nimmt täglich Aspirin ein.",
    "it": "Il paziente è stato ricoverato per dolore toracico. Nega febbre e assume aspirina ogni giorno.",
    "nl": "De patiënt werd opgenomen met pijn op de borst. Geen koorts en hij gebruikt dagelijks aspirine.",
    "pt": "O doente foi internado por dor torácica. Nega febre e toma aspirina todos os dias em casa.",
    "ro": "Pacientul a fost internat pentru durere toracică. Neagă febra și ia aspirină în fiecare zi.",
    "ru": "Пациент поступил с болью в груди. Лихорадки нет, принимает аспирин ежедневно.",
    "zh": "患者因胸痛入院，无发热，每日服用阿司匹林100mg。",
    "ja": "患者は胸痛のため入院した。発熱なし。アスピリンを毎日内服している。",
}

NEIGHBOURS = {
    "eu": "62 urteko gizona, 2 hilabetetako astenia eta anemia zituena. Ondoren ekografia egin zitzaion.",
    "ca": "Pacient de 60 anys que acudeix per dolor toràcic. No té febre i pren aspirina cada dia amb els àpats.",
    "uk": "Пацієнт надійшов із болем у грудях. Гарячки немає, приймає аспірин щодня, інші ліки не вживає.",
    "pl": "Pacjent został przyjęty z powodu bólu w klatce piersiowej. Nie ma gorączki, przyjmuje aspirynę codziennie.",
    "sv": "Patienten lades in med bröstsmärta. Ingen feber och han tar aspirin varje dag efter frukosten hemma.",
    "no": "Pasienten ble innlagt med brystsmerter. Ikke feber, og han bruker Albyl-E hver dag etter frokost hjemme.",
    "ko": "환자는 흉통으로 입원하였으며 열은 없습니다.",
    "el": "Ο ασθενής εισήχθη με θωρακικό άλγος.",
}


def test_every_supported_language_is_tested() -> None:
    assert set(NOTES) == set(SUPPORTED)


@pytest.mark.parametrize("language", sorted(NOTES))
def test_a_supported_language_is_found(language: str) -> None:
    assert identify(NOTES[language]) == language


@pytest.mark.parametrize("language", sorted(NEIGHBOURS))
def test_a_neighbour_is_not_taken_for_a_supported_language(language: str) -> None:
    assert identify(NEIGHBOURS[language]) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "BP 120/80 HR 72",
        "120/80",
        "NKDA",
        "WBC 12.3 Hgb 9.8 Plt 230 Na 138 K 4.2",
        "Paracetamol 500 mg, Ibuprofen 400 mg, Amoxicillin 1 g",
        "diabetes mellitus",
        "!!! ??? ...",
        "Bệnh nhân nhập viện vì đau ngực ba ngày nay, không sốt, không ho, đang dùng thuốc huyết áp",
        "Hasta göğüs ağrısı nedeniyle yatırıldı. Ateşi yok, her gün aspirin kullanıyor",
        "Пацијент се жали на бол у грудима и отежано дисање",
        "Науқас кеудесінің ауырғанына шағымданады, қызуы жоқ, ыстығы қалыпты",
        "НАУҚАС КЕУДЕСІНІҢ АУЫРҒАНЫНА ШАҒЫМДАНАДЫ, ҚЫЗУЫ ЖОҚ, ЫСТЫҒЫ ҚАЛЫПТЫ",
        "Пацыент паступіў са скаргамі на боль у грудзях. Быў выпісаны дадому",
        "Бемор бо шикоятҳо аз дарди қафаси сина омад, ҳолаташ миёна",
    ],
)
def test_texts_that_tell_no_language_have_none(text: str) -> None:
    assert identify(text) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("¿Qué anticoagulante toma el paciente?", "es"),
        ("Which anticoagulant does the patient take?", "en"),
        ("患者服用什么抗凝药？", "zh"),
        ("抗凝固薬は何を内服中ですか", "ja"),
        ("Какой антикоагулянт принимает пациент?", "ru"),
        ("Эрозия шейки матки", "ru"),
        ("АГ ІІ ст., риск 3, осмотр дома", "ru"),
        ("Больной Кириєнко, жалобы на одышку, отёки", "ru"),
        ("Пациентка Айгүл Нұрғалиқызы, 45 лет, жалобы на боли в груди, одышку", "ru"),
        ("НҰРҒАЛИҚЫЗЫ АЙГҮЛ, жалобы на боли в груди, одышку", "ru"),
        ("Paciente Đặng Thị Hương, 45 años, neumonía derecha, tratamiento amoxicilina", "es"),
        ("Hr. Yiğit Doğan, Pneumonie rechts, Amoxicillin, Röntgen Thorax: Infiltrat rechts", "de"),
        ("Хворий скаржиться на біль у грудях, задишку, набряки ніг", "uk"),
        ("Призначено амоксицилін тричі на добу", "uk"),
        ("患者は傾眠傾向。", "ja"),
        ("誤嚥性肺炎で入院中。", "ja"),
        ("高の川醫院，患者服用抗凝藥", "zh"),
        ("Welk antistollingsmiddel gebruikt de patiënt?", "nl"),
    ],
)
def test_short_questions_are_identified(text: str, language: str) -> None:
    assert identify(text) == language


def test_japanese_without_kana_is_not_chinese() -> None:
    assert identify("７０歳男性　主訴　胸部圧迫感　検査　心電図異常") == "ja"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("急性腎障害", None),
        ("心房細動", None),
        ("僧帽弁閉鎖不全症", None),
        ("心力衰竭", None),
        ("慢性腎臓病", "ja"),
        ("検査所見", "ja"),
        ("高血压", None),
        ("高血压病史", "zh"),
        ("氣喘與過敏病史", "zh"),
        ("血液檢驗報告", "zh"),
        ("血压无异常", "zh"),
    ],
)
def test_han_alone_is_chinese_or_japanese_only_where_a_character_tells(text, language):
    assert identify(text) == language


def test_much_chinese_without_such_a_character_is_chinese():
    assert identify("患者胸痛伴出汗三日入院，既往有糖尿病和高脂血症") == "zh"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("cetoacidose diabética", "pt"),
        ("trombocitopenia", "es"),
        ("Mitralinsuffizienz", "de"),
        ("coloscopie", "fr"),
    ],
)
def test_a_term_is_not_taken_for_another_languages(text, language):
    assert identify(text) in (language, None)


@pytest.mark.parametrize(
    ("text", "language"), [("¿Se descartó la fibrosis quística?", "es"), ("¿Por qué se retiró el adalimumab?", "es")]
)
def test_a_sign_that_one_language_has_to_itself_tells_it(text, language):
    assert identify(text) == language


def test_latin_abbreviations_do_not_hide_chinese() -> None:
    assert identify("CT：双肺结节，WBC 12.3×10^9/L，PLT 230，CRP升高，考虑感染") == "zh"


@pytest.mark.parametrize("language", sorted(NOTES))
def test_a_chunk_inherits_its_notes_language(language: str) -> None:
    assert identify_chunk("WBC 12.3, Hb 9.8, CRP 45, Na 138", language) == language
    assert identify_chunk(NOTES[language], language) == language


def test_a_list_of_drugs_does_not_change_the_language() -> None:
    drugs = (
        "Atorvastatin 40 mg, Metoprolol 47.5 mg, Pantoprazol 40 mg, Amlodipin 5 mg, Ramipril 10 mg, Clopidogrel 75 mg"
    )
    assert identify_chunk(drugs, "ja") == "ja"
    assert identify_chunk(drugs, "de") == "de"


def test_a_table_in_han_stays_japanese_in_a_japanese_note() -> None:
    assert (
        identify_chunk("主訴 胸痛 既往歴 高血圧 糖尿病 家族歴 特記事項無 生活歴 喫煙 飲酒 無 体温 血圧 脈拍", "ja")
        == "ja"
    )


@pytest.mark.parametrize(
    ("inherited", "language"), [("es", "en"), ("zh", "en"), ("en", "ru"), ("en", "zh"), ("de", "fr")]
)
def test_a_chunk_surely_in_another_language_has_its_own(inherited: str, language: str) -> None:
    text = " ".join([NOTES[language]] * 3)
    assert identify_chunk(text, inherited) == language


def test_a_chunk_of_a_note_without_language_is_identified_alone() -> None:
    assert identify_chunk(NOTES["it"], None) == "it"
    assert identify_chunk("BP 120/80", None) is None


SHORT_QUESTIONS = {
    "en": ("Is she pregnant?", "o2 sat when walking"),
    "es": ("¿Fuma el paciente?", "¿A qué es alérgico?"),
    "fr": ("La patiente fume-t-elle ?", "Quel est l'angle de la scoliose ?"),
    "it": ("Quanti cicli di cladribina?", "Qual era la pressione arteriosa?"),
    "pt": ("Qual a hemoglobina?", "Bebe álcool com os pais?"),
    "ro": ("Care este doza?", "Ce alergii are?"),
    "de": ("Hat er Diabetes?", "Wann war die Strumektomie?"),
    "nl": ("Heeft hij koorts?", "Wat is de dosis?"),
    "ru": ("ИМТ", "чсс"),
    "zh": ("CA72.4是多少？", "吸烟吗？"),
    "ja": ("年齢は？", "BNPは？"),
}


@pytest.mark.parametrize("language", SHORT_QUESTIONS)
def test_a_short_question_has_the_language_it_is_likely_asked_in(language):
    assert [identify_question(question) for question in SHORT_QUESTIONS[language]] == [language] * 2


def test_terms_that_all_languages_share_are_asked_in_none():
    assert {identify_question(term) for term in ("INR", "SpO2", "Lipase", "I48.0", "120/80", "?")} == {None}


def test_between_two_languages_a_question_is_of_the_one_of_the_notes():
    assert identify_question("尿量", ["ja", "en"]) == "ja"
    assert identify_question("尿量", ["zh", "ja"]) == identify_question("尿量") == "zh"
    assert [identify_question("Que anticoagulante toma?", [of]) for of in ("pt", "es")] == ["pt", "es"]
    assert identify_question("¿Qué anticoagulante toma?", ["pt"]) == "es"


@given(st.text(max_size=40), st.lists(st.sampled_from(SUPPORTED), max_size=3))
def test_any_question_has_a_language_or_none(text, likely):
    told = identify(text)
    guessed = identify_question(text, likely)
    assert guessed == told if told is not None else guessed is None or isinstance(guessed, str)
