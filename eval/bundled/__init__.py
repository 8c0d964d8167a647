"""Which notes and questions come with clinrag? Invented records of 12 patients in 11 languages, see ``README.md``."""

from eval.bundled.questions import BundledQuestion, Relevant, load_questions, notes_path, questions_path

__all__ = ["BundledQuestion", "Relevant", "load_questions", "notes_path", "questions_path"]
