"""Which encoders there are, by name: what a collection keeps, and how a name becomes an encoder."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from indexer.encoders.encoder import Encoder, HashingEncoder
from indexer.errors import EncoderUnavailableError

COMPACT_FOLDER = Path(__file__).parent / "compact"
PACKED_TYPE = "clinrag-packed-bert"  # the ``model_type`` of the shipped form
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A named encoder: where it comes from, what it is for. ``hub_id`` is ``None`` for what needs no download.

    ``max_length`` and ``parameters_m`` are for the list; a loaded encoder says its own. ``architectures`` are the
    model types that its checkpoints are known with, as their configuration names them.
    """

    name: str
    hub_id: str | None
    revision: str | None
    pooling: str | None
    languages: str
    parameters_m: int | None
    max_length: int
    licence: str
    about: str
    architectures: tuple[str, ...] = ()


def _backbone(
    name: str, hub_id: str, about: str, *, languages: str, parameters_m: int, licence: str, architecture: str = "bert"
) -> CatalogEntry:
    """Return a masked language model: mean pooling, to be tuned before retrieval."""
    lengths = {"modernbert": 8192, "longformer": 4096}
    longest = lengths.get(architecture, 512)
    return CatalogEntry(name, hub_id, None, "mean", languages, parameters_m, longest, licence, about, (architecture,))


_ENTRIES = (
    CatalogEntry(
        "compact",
        None,
        None,
        None,
        "en zh es ja ru nl ro fr de pt it",
        60,
        512,
        "MIT",
        "the shipped retriever",
        ("bert",),
    ),
    CatalogEntry("hashing", None, None, None, "any", None, 512, "MIT", "character n-grams: oracle and cold start"),
    CatalogEntry(
        "multiclinicalbert",
        "YLab-Open/MultiClinicalBERT",
        "1dd4a44",
        "mean",
        "en zh es ja ru",
        308,
        512,
        "MIT",
        "masked language model on clinical notes: tune it before retrieval",
        ("bert", "modernbert"),  # its card says mBERT, its published size is mmBERT's: both are taken
    ),
    _backbone(
        "mbert",
        "google-bert/bert-base-multilingual-cased",
        "general",
        languages="104 languages",
        parameters_m=178,
        licence="Apache-2.0",
    ),
    _backbone(
        "mmbert",
        "jhu-clsp/mmBERT-base",
        "general, long",
        languages="1,833 languages",
        parameters_m=307,
        licence="MIT",
        architecture="modernbert",
    ),
    _backbone(
        "bio-clinicalbert",
        "emilyalsentzer/Bio_ClinicalBERT",
        "MIMIC-III notes",
        languages="en",
        parameters_m=108,
        licence="MIT",
    ),
    _backbone(
        "bio-discharge-bert",
        "emilyalsentzer/Bio_Discharge_Summary_BERT",
        "MIMIC-III discharge notes",
        languages="en",
        parameters_m=108,
        licence="MIT",
    ),
    _backbone(
        "biobert",
        "dmis-lab/biobert-base-cased-v1.2",
        "PubMed",
        languages="en",
        parameters_m=108,
        licence="see its card",
    ),
    _backbone(
        "bioclinical-modernbert",
        "thomas-sounack/BioClinical-ModernBERT-base",
        "biomedical and clinical, long",
        languages="en",
        parameters_m=150,
        licence="MIT",
        architecture="modernbert",
    ),
    _backbone(
        "clinical-modernbert",
        "Simonlee711/Clinical_ModernBERT",
        "PubMed and MIMIC-IV, long",
        languages="en",
        parameters_m=137,
        licence="see its card",
        architecture="modernbert",
    ),
    _backbone(
        "roberta-es-clinical",
        "PlanTL-GOB-ES/roberta-base-biomedical-clinical-es",
        "biomedical and clinical",
        languages="es",
        parameters_m=126,
        licence="Apache-2.0",
        architecture="roberta",
    ),
    _backbone(
        "cardioberta-es",
        "DT4H/CardioBERTa.es",
        "cardiology",
        languages="es",
        parameters_m=126,
        licence="see its card",
        architecture="roberta",
    ),
    _backbone(
        "drbert",
        "Dr-BERT/DrBERT-7GB",
        "biomedical",
        languages="fr",
        parameters_m=111,
        licence="Apache-2.0",
        architecture="camembert",
    ),
    _backbone(
        "clinical-longformer-fr",
        "abazoge/DrLongformer",
        "biomedical and clinical, long",
        languages="fr",
        parameters_m=149,
        licence="Apache-2.0",
        architecture="longformer",
    ),
    _backbone(
        "medbert-de",
        "GerMedBERT/medbert-512",
        "medical; asks for consent",
        languages="de",
        parameters_m=109,
        licence="see its card",
    ),
    _backbone(
        "christbert-de",
        "ChristBERT/ChristBERT_base",
        "biomedical and clinical; asks for consent",
        languages="de",
        parameters_m=126,
        licence="see its card",
        architecture="roberta",
    ),
    _backbone(
        "medroberta-nl",
        "CLTL/MedRoBERTa.nl",
        "hospital notes",
        languages="nl",
        parameters_m=126,
        licence="MIT",
        architecture="roberta",
    ),
    _backbone(
        "cardioberta-nl",
        "UMCU/CardioBERTa.nl_clinical",
        "cardiology",
        languages="nl",
        parameters_m=126,
        licence="GPL-3.0",
        architecture="roberta",
    ),
    _backbone(
        "cardioberta-ro",
        "DT4H/CardioBERTa.ro",
        "cardiology",
        languages="ro",
        parameters_m=278,
        licence="see its card",
        architecture="xlm-roberta",
    ),
)
CATALOG: Mapping[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}


def default_encoder_name() -> str:
    """Return ``compact`` where its weights are in the package, else ``hashing``."""
    return "compact" if (COMPACT_FOLDER / "model.safetensors").is_file() else "hashing"


def load_encoder(name: str) -> Encoder:
    """Return the encoder of a catalog name, a local folder or a hub id that is in the local cache.

    Raises:
        EncoderUnavailableError: unknown, or not on this machine; the message says how to get it.
    """
    if name == "hashing":
        return HashingEncoder()
    if name == "compact":
        return _compact()
    entry = CATALOG.get(name)
    if entry is not None and entry.hub_id is not None:
        return _from_folder(_snapshot(name, entry.hub_id, entry.revision, local_only=True), entry.hub_id, entry.pooling)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _from_folder(folder, folder.resolve().name, None)
    if _HUB_ID.match(name):
        return _from_folder(_snapshot(name, name, None, local_only=True), name, None)
    raise EncoderUnavailableError(
        f"no encoder '{name}': give one of {', '.join(CATALOG)}, the path of a model folder, or a hub id"
    )


def model_folder(name: str) -> Path:
    """Return the folder of a model on this machine: a path, a catalog name, or a hub id in the local cache.

    Raises:
        EncoderUnavailableError: unknown, or not on this machine; the message says how to get it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    entry = CATALOG.get(name)
    hub_id, revision = (entry.hub_id, entry.revision) if entry is not None else (name, None)
    if hub_id is None or not _HUB_ID.match(hub_id):
        named = 'the path of a model folder, a name of "clinrag encoders list" that is fetched, or a hub id'
        raise EncoderUnavailableError(f"'{name}' is no model; give {named}")
    return _snapshot(name, hub_id, revision, local_only=True)


def is_packed(folder: Path) -> bool:
    """Whether a model folder is of the shipped form."""
    config = folder / "config.json"
    return config.is_file() and f'"{PACKED_TYPE}"' in config.read_text(encoding="utf-8", errors="replace")


def fetch(name: str) -> Path:
    """Download a catalog encoder or hub id into the local cache and return its folder: the one call that goes out.

    Raises:
        EncoderUnavailableError: the name is no hub model, or the hub does not answer.
    """
    entry = CATALOG.get(name)
    if entry is not None and entry.hub_id is None:
        raise EncoderUnavailableError(f"'{name}' comes with the package; there is nothing to fetch")
    hub_id, revision = (entry.hub_id, entry.revision) if entry is not None else (name, None)
    if hub_id is None or not _HUB_ID.match(hub_id):
        raise EncoderUnavailableError(f"'{name}' is neither a catalog name nor a hub id such as owner/model")
    return _snapshot(name, hub_id, revision, local_only=False)


def is_here(entry: CatalogEntry) -> bool:
    """Return whether an encoder can be loaded without a download."""
    if entry.hub_id is None:
        return entry.name != "compact" or default_encoder_name() == "compact"
    try:
        _snapshot(entry.name, entry.hub_id, entry.revision, local_only=True)
    except EncoderUnavailableError:
        return False
    return True


def _compact() -> Encoder:
    if not (COMPACT_FOLDER / "model.safetensors").is_file():
        raise EncoderUnavailableError("the shipped retriever's weights are not in this install; use --encoder hashing")
    from indexer.encoders.packed import PackedEncoder

    return PackedEncoder(COMPACT_FOLDER)


def _from_folder(folder: Path, model_id: str, pooling: str | None) -> Encoder:
    if is_packed(folder):
        from indexer.encoders.packed import PackedEncoder

        return PackedEncoder(folder)
    from indexer.encoders.static import StaticEncoder, is_static

    if is_static(folder):
        return StaticEncoder(folder, model_id)
    from indexer.encoders.sentence import SentenceEncoder

    return SentenceEncoder(folder, model_id=model_id, pooling=pooling)


def _snapshot(name: str, hub_id: str, revision: str | None, *, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*/config.json", "README.md"]
    try:
        found = snapshot_download(hub_id, revision=revision, local_files_only=local_only, allow_patterns=patterns)
    except LocalEntryNotFoundError as error:
        if local_only:
            # The name, not the hub id: with it goes the revision that the catalog has pinned.
            mend = f'run "clinrag encoders fetch {name}" on a machine with network'
            raise EncoderUnavailableError(f"{name} is not in the local cache; {mend}") from error
        raise EncoderUnavailableError(_failure(hub_id, revision, error.__cause__ or error)) from error
    except Exception as error:  # the hub's client lets errors of its transport through, under several roots
        raise EncoderUnavailableError(_failure(hub_id, revision, error)) from error
    return Path(found)


def _failure(hub_id: str, revision: str | None, error: BaseException) -> str:
    """Return what went wrong while fetching, with the mend."""
    what = hub_id if revision is None else f"{hub_id} at revision {revision}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what} cannot be stored: the disk is full; free some space and run the same again"
    if status is None:
        return f"{what} cannot be fetched: the hub was not reached ({type(error).__name__}); check the network"
    mends = {
        401: "there is no such model, or it needs the token of an account that may read it",
        403: "the model is gated: ask for access on its page and log in",
        404: "there is no such model or revision; check the name",
    }
    mend = mends.get(status, "try again later")
    return f"{what} cannot be fetched: the hub answered {status} ({type(error).__name__}); {mend}"
