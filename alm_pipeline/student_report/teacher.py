"""The teachers of students, in memory, to continue samples."""

from functools import cache

from alm_pipeline.student_report.samples import Continue
from alm_pipeline.student_report.stored import ReportedStudent, mapping, number
from storage.errors import UserError

_TOKENS = 32


def loaded_teachers() -> Continue:
    """Return a function that continues texts greedily, by as many tokens as the student's samples have.

    It loads a teacher when it is first asked for, in float32. Raises UserError if a student's teacher is not recorded,
    or is not where it was.
    """
    from alm_pipeline.ensemble.generation import greedy_continuation
    from alm_pipeline.ensemble.loading import load

    loaded = cache(load)

    def go_on(student: ReportedStudent, prompt: str) -> str:
        config = student.configuration
        name, tokens = config.get("teacher"), number(mapping(config.get("evaluation")).get("sample_tokens"))
        if not isinstance(name, str):
            raise UserError(f"{student.url}: its manifest records no teacher: leave --teacher out")
        model, tokenizer = loaded(name, trust_remote_code=config.get("trust_remote_code") is True)
        return greedy_continuation(model, tokenizer, name, prompt, int(tokens or _TOKENS))

    return go_on
