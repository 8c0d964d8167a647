from __future__ import annotations

import pytest

from indexer.records import Note
from indexer.text.memory import forget
from rag.copies import alike, wording
from rag.search import SearchRequest, checked, search, search_view
from tests.indexer.made_collections import LetterEncoder, new, store
from tests.memory import holds
from tests.rag.collections import ConceptEncoder, HeldCollection, HeldPassage
from tests.rag.test_search import meanings

BASE = {
    "en": "Renal function: creatinine stable at 1.8 after contrast, no dialysis, diuresis good, left kidney tiny.",
    "es": "Función renal: creatinina estable 1,8 tras contraste, sin diálisis, diuresis normal, riñón izquierdo bajo.",
    "ru": "Функция почек: креатинин стабилен 1,8 после контраста, диализ не нужен, диурез сохранен, левая почка мала.",
    "zh": "肾功能：造影后肌酐稳定于1.8，无需透析，尿量正常，左肾偏小，建议继续随访观察。",
    "ja": "腎機能：造影後クレアチニン1.8で安定、透析なし、尿量は保たれ、左腎は小さい。経過観察を続ける。",
}
MORE = {"en": " Continue.", "es": " Continuar.", "ru": " Продолжать.", "zh": "继续。", "ja": "継続。"}
OTHER = {
    "en": [("1.8", "2.8"), ("no dialysis", "dialysis"), ("left", "right"), ("after contrast", "after ibuprofen")],
    "es": [("1,8", "2,8"), ("sin diálisis", "con diálisis"), ("izquierdo", "derecho")],
    "ru": [("1,8", "2,8"), ("не нужен", "нужен"), ("левая", "правая")],
    "zh": [("1.8", "2.8"), ("无需透析", "需透析"), ("左肾", "右肾")],
    "ja": [("1.8", "2.8"), ("透析なし", "透析"), ("左腎", "右腎")],
}


@pytest.mark.parametrize("language", BASE)
def test_a_text_that_gained_a_word_is_a_near_copy(language):
    text = BASE[language]
    assert alike(wording(text, language), wording(text + MORE[language], language))
    assert alike(wording(text, language), wording(text.replace(", ", ",  \n"), language))


@pytest.mark.parametrize(("language", "old", "new"), [(lang, *pair) for lang, pairs in OTHER.items() for pair in pairs])
def test_a_differing_fact_is_no_near_copy(language, old, new):
    assert old in BASE[language]
    changed = BASE[language].replace(old, new)
    for other in (changed, changed + MORE[language]):
        assert not alike(wording(BASE[language], language), wording(other, language))
        assert not alike(wording(other, language), wording(BASE[language], language))


GAINED = {
    "en": "Stopped.", "es": "Suspendido.", "fr": "Arrêté.", "de": "Ausgeschlossen.", "it": "Sospeso.", "nl": "Gestopt.",
    "pt": "Suspenso.", "ro": "Oprit.", "ru": "Отменён.", "zh": "已停药。", "ja": "中止。",
}  # fmt: skip
TAKEN = {
    "en": "Takes warfarin in the evening for atrial fibrillation, the INR is checked at the clinic each month.",
    "es": "Toma warfarina por la noche por fibrilación auricular, el INR se controla cada mes en la consulta.",
    "fr": "Prend de la warfarine le soir pour une fibrillation atriale, INR contrôlé chaque mois au cabinet.",
    "de": "Nimmt abends Warfarin wegen Vorhofflimmern, die INR wird jeden Monat in der Ambulanz kontrolliert.",
    "it": "Assume warfarin la sera per fibrillazione atriale, INR controllato ogni mese presso il nostro centro.",
    "nl": "Gebruikt warfarine in de avond wegens boezemfibrilleren, de INR wordt elke maand gecontroleerd hier.",
    "pt": "Toma varfarina à noite por fibrilhação auricular, o INR é controlado todos os meses na consulta.",
    "ro": "Ia warfarină seara pentru fibrilație atrială, INR-ul este controlat lunar la cabinetul din oraș.",
    "ru": "Принимает варфарин вечером по поводу фибрилляции предсердий, контроль показателей крови каждый месяц.",
    "zh": "因心房颤动每晚服用华法林，每月在门诊复查凝血指标，家属陪同，情况平稳。",
    "ja": "心房細動のため毎晩ワルファリンを内服、毎月外来で凝固能を確認している。家族が同伴。",
}


@pytest.mark.parametrize("language", GAINED)
def test_a_text_that_gained_a_word_which_turns_it_is_another_fact(language):
    text = TAKEN[language]
    harmless = {"zh": "继续观察。", "ja": "次回来月。"}.get(language, "Continua.")
    assert alike(wording(text, language), wording(f"{text} {harmless}", language))
    assert not alike(wording(text, language), wording(f"{text} {GAINED[language]}", language))


def test_short_texts_must_be_equal():
    assert not alike(wording("Stable today", "en"), wording("Stable today again", "en"))


def held(*texts, patients=None):
    encoder = ConceptEncoder()
    (about,) = meanings(1, 4)
    encoder.put("renal function", about, "en")
    passages = []
    for n, text in enumerate(texts):
        patient = "p1" if patients is None else patients[n]
        encoder.put(text, about, "en")
        passages.append(HeldPassage(n, f"n{n}", text, "en", patient, f"2024-01-{n + 1:02}"))
    return HeldCollection(passages, encoder)


def test_edited_copy_forward_is_one_hit_that_shows_the_fullest_text_and_its_dates():
    text = BASE["en"]
    world = held(text, text, text + " Continue.", text.replace("1.8", "2.8"))
    hits = search(world, world.encoder, SearchRequest("renal function")).hits
    shown = {hit.text: (hit.copies, hit.first_seen, hit.last_seen) for hit in hits}
    assert shown == {
        text + " Continue.": (3, "2024-01-01", "2024-01-03"),
        text.replace("1.8", "2.8"): (1, "2024-01-04", "2024-01-04"),
    }
    assert [hit.rank for hit in hits] == [1, 2]


def test_near_copies_of_two_patients_or_of_nobody_stay_apart():
    text = BASE["en"]
    for patients in (("p1", "p2"), (None, None)):
        world = held(text, text + " Continue.", patients=patients)
        assert len(search(world, world.encoder, SearchRequest("renal function")).hits) == 2


def test_k_counts_after_near_copies_are_joined():
    texts = [BASE["en"] + " Continue." * (n % 3) for n in range(30)] + [
        f"Finding number {n} is new here." for n in range(8)
    ]
    world = held(*texts)
    hits = search(world, world.encoder, SearchRequest("renal function", k=8)).hits
    assert len(hits) == 8
    assert max(hit.copies for hit in hits) == 30


def test_no_passage_stays_in_memory_when_something_was_erased():
    unheard = "".join(["qzost", "erif"])
    wording(f"Fever and {unheard}orm.", "en")

    there = holds(unheard)
    forget()
    assert (there, holds(unheard)) == (True, False)


@pytest.mark.parametrize("gone", [["n2"], ["n1", "n2"], ["n0", "n2"]])
def test_a_text_is_found_as_long_as_one_copy_of_it_is_there(tmp_path, gone):
    notes = [
        Note(f"n{n}", "chest pain.", patient_id="p1", language="en", authored_at=f"2024-01-0{n + 1}") for n in range(3)
    ]
    with new(tmp_path, "copied") as collection:
        store(collection, *notes, languages=("en",), sections=(None,))
        view = collection.view()
        collection.delete_notes(gone)  # while somebody searches
        request = checked(SearchRequest("chest pain"))
        found = search_view(view, collection.name, LetterEncoder(), request).result
    last = max({"n0", "n1", "n2"}.difference(gone))
    assert [(hit.note_id, hit.text) for hit in found.hits] == [(last, "chest pain.")]
