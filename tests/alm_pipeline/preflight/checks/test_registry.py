"""Each wrong setting and input that can be known before the first stage, and the finding about it."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BloomConfig, BloomForCausalLM, T5Config

from alm_pipeline.config import AlmConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.preflight.checks import (
    conversations,
    corpus,
    engines,
    models,
    output,
    scores,
    settings,
    student,
    templates,
    unread,
)
from alm_pipeline.preflight.checks.registry import CHECKS
from alm_pipeline.preflight.findings import Finding
from alm_pipeline.recipes.overrides import Overrides, override
from storage.errors import UserError
from tests import tiny
from tests.corpora import write_chats

Settings = dict[str, Any]
Change = Callable[[AlmConfig, Path], Settings]

pytestmark = pytest.mark.bad_input


def with_settings(config: AlmConfig, settings: Settings) -> AlmConfig:
    return override(config, Overrides(settings=settings))


def findings_of(config: AlmConfig, root: Path, **parameters: Any) -> list[Finding]:
    return Pipeline(config, str(root)).preflight(**parameters)


def texts(folder: Path, *rows: object) -> Settings:
    file = folder / "texts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {"corpus.source.urls": [str(file)]}


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(name, folder / "model"))


def edited(name: str, folder: Path, file: str, **values: object) -> str:
    """A copy of a model's folder with other values in one of its JSON files."""
    copy = copied(name, folder)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**content, **values}))
    return str(copy)


def with_weight(name: str, folder: Path, value: float) -> str:
    copy = copied(name, folder)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return str(copy)


def without(name: str, folder: Path, file: str) -> str:
    copy = copied(name, folder)
    (copy / file).unlink()
    return str(copy)


def cut_weights(name: str, folder: Path) -> str:
    copy = copied(name, folder)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-100])
    return str(copy)


def mixing_model(_: AlmConfig, folder: Path) -> Settings:
    """Bloom's positions are distances, so it attends across packed examples."""
    tokenizer = tiny.byte_level_tokenizer()
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_head=4, n_layer=2))
    return {"student.model": tiny.save(folder / "bloom", model, tokenizer)}


def of_class(config: Any) -> Change:
    def change(start: AlmConfig, folder: Path) -> Settings:
        copy = copied(start.teacher, folder)
        config.save_pretrained(copy)
        return {"teacher": str(copy)}

    return change


def short_context(start: AlmConfig, folder: Path) -> Settings:
    return {"student.model": edited(start.student.model, folder, "config.json", max_position_embeddings=15)}


def without_template(start: AlmConfig, folder: Path) -> Settings:
    copy = copied(start.teacher, folder)
    (copy / "chat_template.jinja").unlink()
    chats = write_chats(folder / "chats.jsonl")
    return {"teacher": str(copy), "corpus.messages": "messages", "corpus.source.urls": [chats]}


def refusing_template(start: AlmConfig, folder: Path) -> Settings:
    copy = copied(start.student.model, folder)
    (copy / "chat_template.jinja").write_text("{{ raise_exception('only tools') }}")
    chats = write_chats(folder / "chats.jsonl")
    return {"student.model": str(copy), "corpus.messages": "messages", "corpus.source.urls": [chats]}


def template_file(folder: Path, template: str) -> str:
    (folder / "side.jinja").write_text(template)
    return str(folder / "side.jinja")


def chats(folder: Path, *rows: dict[str, Any]) -> Settings:
    """Forty conversations, and further rows."""
    file = Path(write_chats(folder / "chats.jsonl"))
    file.write_text("\n".join([*map(json.dumps, rows), file.read_text()]))
    return {"corpus.source.urls": [str(file)], "corpus.messages": "messages"}


def with_tools(folder: Path) -> Settings:
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Rain."}]
    return chats(folder, {"messages": messages, "tools": [{"name": "look", "parameters": {}}]})


def late_tools(folder: Path) -> Settings:
    settings = with_tools(folder)
    file = Path(settings["corpus.source.urls"][0])
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([*rest * 3, first]))
    return settings


def without_answers(_: AlmConfig, folder: Path) -> Settings:
    rows = [{"messages": [{"role": "user", "content": f"Number {k}"}]} for k in range(40)]
    return {**texts(folder, *rows), "corpus.messages": "messages", "objective.assistant_only": True}


def with_chats(start: AlmConfig, folder: Path, template: str, **settings: object) -> Settings:
    """Conversations of a system, a user and an assistant, and a student with this template."""
    copy = copied(start.student.model, folder)
    (copy / "chat_template.jinja").write_text(template)
    turns = ("system", "Be brief."), ("user", "Number {}?"), ("assistant", "It is {}.")
    rows = [{"messages": [{"role": role, "content": text.format(k)} for role, text in turns]} for k in range(80)]
    others = {name.replace("__", "."): value for name, value in settings.items()}
    return {**texts(folder, *rows), "corpus.messages": "messages", "student.model": str(copy), **others}


WITHOUT_SYSTEM = "{% for message in messages if message['role'] != 'system' %}" + tiny.CHATML.split("%}", 1)[1]
"""CHATML that leaves out the system's message"""


def chats_with(template: str, **settings: object) -> Change:
    return lambda start, folder: with_chats(start, folder, template, **settings)


def damaged_parquet(_: AlmConfig, folder: Path) -> Settings:
    (folder / "a.parquet").write_bytes(b"PAR1" + bytes(40))
    (folder / "b.jsonl").write_text('{"text": "Some text is here."}\n' * 30)
    return {"corpus.source.urls": [str(folder / "a.parquet"), str(folder / "b.jsonl")]}


def taken_storage(_: AlmConfig, folder: Path) -> Settings:
    (folder / "data").write_text("a file")
    return {}


def vocabulary_of_another(start: AlmConfig, folder: Path) -> Settings:
    return {"teacher": tiny.save(folder / "wrong", tiny.tiny_llama(300), tiny.byte_level_tokenizer(400))}


def set_to(field: str, value: object) -> Change:
    return lambda _, __: {field: value}


NAMES = "similar names are model.layers.*.self_attn"
ERRORS: dict[str, tuple[Change, str, str]] = {
    # corpus
    "no file": (set_to("corpus.source.urls", ["no/file.jsonl"]), "corpus.source.urls", "no file matches no/file.jsonl"),
    "no column": (set_to("corpus.text", "body"), "corpus.text", "has no column 'body'; it has 'text'"),
    "no column of a template": (set_to("corpus.text", "{text} {body}"), "corpus.text", "has no column 'body'"),
    "template": (set_to("corpus.text", "{text"), "corpus.text", "is not a valid template"),
    "no column of ids": (set_to("corpus.id", "key"), "corpus.id", "has no column 'key'"),
    "ids twice": (lambda _, folder: {**texts(folder, *[{"text": "One text.", "id": 1}] * 2), "corpus.id": "id"},
                  "corpus.id", "two examples of the corpus have the id '1'"),
    "damaged file": (damaged_parquet, "corpus.source", "a.parquet"),
    "form": (set_to("corpus.normalize", ["nfx"]), "corpus.normalize", "'nfx' is not a form"),
    "only empty texts": (lambda _, folder: texts(folder, {"text": " "}, {"text": ""}), "corpus.text", "empty: 2"),
    "messages that are text": (set_to("corpus.messages", "text"), "corpus.messages", "not_text: 80"),
    "nothing held out": (set_to("corpus.held_out", 0), "corpus.held_out", "no example would be held out"),
    "too small to hold out": (set_to("corpus.held_out", 1e-9), "corpus.held_out", "none of the"),
    "all held out": (set_to("corpus.held_out", 1 - 1e-9), "corpus.held_out", "nothing is left to train on"),
    "texts of one token": (lambda _, folder: texts(folder, *[{"text": letter} for letter in "abcdefghij" * 9]),
                           "corpus.text", "a single token of the student's tokenizer"),
    "no chat template": (without_template, "teacher", "the tokenizer has no chat template"),
    "a template that refuses": (refusing_template, "student.tokenizer", "it refuses all 40 conversations"),
    "an unknown template": (set_to("teacher_template", "chatlm"), "teacher_template", "did you mean chatml?"),
    "a template that is not there": (set_to("student.template", "no/such.jinja"), "student.template", "neither a file"),
    "a template that is not Jinja": (
        lambda _, folder: {"student.template": template_file(folder, "{% for m in messages %}")},
        "student.template", "side.jinja: is not valid Jinja (line 1: "),
    "a template with arguments that is not there": (
        set_to("teacher_template", {"template": "tool_use", "arguments": {"x": 1}}),
        "teacher_template", "'tool_use' is neither a file"),
    "a chosen template that refuses": (
        lambda _, folder: {**chats(folder),
                           "teacher_template": template_file(folder, "{{ raise_exception('only tools') }}")},
        "teacher_template", "it refuses all 40 conversations"),
    "tools after the first rows": (lambda _, folder: late_tools(folder), "corpus.tools",
                                   "its first rows do not have: set corpus.tools to tools"),
    "all messages are context": (
        lambda _, folder: texts(folder, *[{"messages": [
            {"role": "user", "content": "How much?"}, {"role": "assistant", "content": f"{k}.", "weight": 0}]}
            for k in range(60)]),
        "corpus.marks", "nothing is learned"),
    "marks without answers": (
        lambda _, folder: texts(folder, *[{"messages": [{"role": "user", "content": f"{k}", "train": 1}]}
                                          for k in range(60)]),
        "corpus.marks", "no conversation has a message of the role assistant"),
    "no answers": (without_answers, "objective.assistant_only", "no conversation has a message of the role assistant"),
    "a template that shows nothing": (chats_with("{{ messages | length }}"), "student.tokenizer",
                                      "chat template shows no message in all 80 conversations (of the roles assistant"),
    "refused one-sided bytes": (chats_with(WITHOUT_SYSTEM, corpus__one_sided="refuse"), "corpus.one_sided",
                                "only the teacher sees"),
    "no part to learn": (chats_with(tiny.CHATML, objective__learn=["reasoning"], objective__assistant_only=True),
                         "objective.learn", "nothing is learned in all 80 conversations (learn: reasoning;"),
    # models
    "no teacher": (set_to("teacher", "no/such"), "teacher", "not a local folder, and could not be fetched"),
    "no demo model": (set_to("student.model", "demo:none"), "student.model", "'none' is not a demo model"),
    "no configuration": (lambda start, folder: {"teacher": without(start.teacher, folder, "config.json")},
                         "teacher", "has no config.json"),
    "no tokenizer": (lambda start, folder: {"teacher": without(start.teacher, folder, "tokenizer.json")},
                     "teacher", "has no tokenizer.json"),
    "no weights": (lambda start, folder: {"teacher": without(start.teacher, folder, "model.safetensors")},
                   "teacher", "holds no weights"),
    "cut weights": (lambda start, folder: {"student.model": cut_weights(start.student.model, folder)},
                    "student.model", "bytes long, as after an interrupted copy"),
    "NaN of the teacher": (lambda start, folder: {"teacher": with_weight(start.teacher, folder, float("nan"))},
                           "teacher", "weights are NaN or infinite: model.norm.weight"),
    "NaN of the student": (
        lambda start, folder: {"student.model": with_weight(start.student.model, folder, float("nan"))},
        "student.model", "weights are NaN or infinite: model.norm.weight"),
    "beyond float16": (
        lambda start, folder: {"student.model": with_weight(start.student.model, folder, 1e5),
                               "train.save_dtype": "float16"},
        "train.save_dtype", "model.norm.weight has weights beyond the range of float16"),
    "encoder-decoder": (of_class(T5Config()), "teacher", "is an encoder-decoder"),
    "without a head": (of_class(BertConfig(architectures=["BertForSequenceClassification"])), "teacher",
                       "has no head that predicts the next token"),
    "another's tokenizer": (vocabulary_of_another, "teacher", "the model's embedding has 300 rows"),
    "short context": (short_context, "student.model", "at least 16 are needed"),
    "no new tokenizer": (set_to("student.tokenizer", "no/such"), "student.tokenizer", "could not be fetched"),
    "no donor": (
        lambda start, _: {"student.tokenizer": start.teacher, "student.initialization": "omp",
                          "student.donor": "no/such"},
        "student.donor", "could not be fetched"),
    "another donor": (
        lambda start, _: {"student.tokenizer": start.teacher, "student.initialization": "omp",
                          "student.donor": start.student.model, "student.special_tokens": "target"},
        "student.donor", "its tokenizer lacks"),
    "generation settings": (
        lambda start, folder: {"student.model": edited(start.student.model, folder, "generation_config.json",
                                                       cache_implementation="nonsense")},
        "student.model", "generation_config.json"),
    # scoring
    "context of windows": (set_to("score.context", 511), "score.context", "511 tokens leave no room"),
    "device": (set_to("score.devices", ["cpu", "cuda:77"]), "score.devices", "cuda:77: this machine has no such"),
    # objective
    "no likeliest tokens": (set_to("objective.terms", {"alm": 1, "bpm": 0.5}), "score.top_k",
                            "is 0, and the term bpm of objective.terms compares the student with"),
    "gamma of one": (set_to("objective.gamma", 1), "objective.gamma", "no chunk counts"),
    # training
    "freeze": (set_to("train.freeze", ["*.self_atn.*"]), "train.freeze", f"*.self_atn.* matches no parameter; {NAMES}"),
    "freeze everything": (set_to("train.freeze", ["*"]), "train.freeze", "every parameter matches"),
    "learning rates": (set_to("train.learning_rates", {"*.self_atn.*": 1e-3}), "train.learning_rates", NAMES),
    "adapters": (set_to("train.lora", {"targets": ["*.self_atn.*"]}), "train.lora.targets",
                 f"matches no linear layer; {NAMES}"),
    "balance": (lambda *_: {"train.freeze": ["model.layers.1.*"], "objective.balance": "gradmag"},
                "objective.balance", "no parameter of it is trained"),
    "packed rows": (mixing_model, "train.row_tokens", "attends across packed examples"),
    "attention": (set_to("train.attention", "nonsense"), "train.attention", "nonsense is not available for llama"),
    "processes": (lambda *_: {"train.processes": 2, "train.accumulation": 3}, "train.accumulation",
                  "3 batches per step can't be shared equally by 2 processes"),
    "tracker": (set_to("log.report_to", ["mlflow"]), "log.report_to", "mlflow is not installed here: pip install"),
    "hub": (set_to("publish", {"repo": "me/student"}), "publish.repo", "HF_HUB_OFFLINE is set"),
    # storage
    "storage": (taken_storage, "storage", "data"),
}  # fmt: skip
"""The change of a sound configuration, the field of the finding, and a part of its sentence."""


@pytest.mark.parametrize("case", ERRORS)
def test_each_problem_is_one_finding(case: str, config: AlmConfig, tmp_path: Path) -> None:
    change, field, part = ERRORS[case]
    found = findings_of(with_settings(config, change(config, tmp_path)), tmp_path / "data")
    errors = [item for item in found if item.severity == "error"]
    assert [item.field for item in errors] == [field], [item.text for item in found]
    assert part in errors[0].sentence
    assert errors[0].fix
    assert errors[0].sentence.startswith(errors[0].problem)


WARNINGS: dict[str, tuple[Change, str, str]] = {
    "few held out": (set_to("corpus.held_out", 0.1), "corpus.held_out", "examples are held out"),
    "tools that a template does not read": (
        lambda _, folder: {**with_tools(folder), "student.template": "chatml"},
        "teacher_template", "of 41 conversations, 1 have 'tools', which the teacher's chat template does not read"),
    "arguments that a template does not read": (
        lambda _, folder: {**chats(folder), "teacher_template": {"arguments": {"enable_thinking": False}}},
        "teacher_template", "does not read 'enable_thinking'"),
    "a template of other tokens": (
        lambda _, folder: {**chats(folder), "teacher_template": "chatml"},
        "teacher_template", "writes <|im_start|>, <|im_end|>, which the teacher's tokenizer has no token for"),
    "a column of tools that has none": (
        lambda _, folder: {**chats(folder), "corpus.tools": "tools"}, "corpus.tools", "none of the first 40 examples"),
    "one-sided bytes": (chats_with(WITHOUT_SYSTEM), "corpus.one_sided", "system"),
    "parts without effect": (chats_with(tiny.CHATML, objective__learn=["answer"]), "objective.learn",
                             "objective.assistant_only is false, so all is learned"),
    "turns without effect": (chats_with(tiny.CHATML, objective__learned_turns="last"), "objective.learned_turns",
                             "set objective.assistant_only to true"),
    "one process": (set_to("train.sharding", "fsdp"), "train.sharding", "a single process trains here"),
}  # fmt: skip


@pytest.mark.parametrize("case", WARNINGS)
def test_what_does_not_stop_a_run_is_a_warning(case: str, config: AlmConfig, tmp_path: Path) -> None:
    change, field, part = WARNINGS[case]
    found = findings_of(with_settings(config, change(config, tmp_path)), tmp_path / "data")
    assert [(item.field, item.severity) for item in found] == [(field, "warning")], [item.text for item in found]
    assert part in found[0].sentence


def test_a_student_that_is_too_large_for_this_machine(config: AlmConfig, tmp_path: Path) -> None:
    model = edited(config.student.model, tmp_path, "config.json", intermediate_size=2**36)
    found = findings_of(with_settings(config, {"student.model": model}), tmp_path / "data")
    disk, memory = found
    assert (disk.field, disk.value, disk.severity) == ("storage", str(tmp_path / "data"), "error")
    assert "GB free, and the run needs about" in disk.sentence
    assert (memory.field, memory.severity) == ("student.model", "warning")
    assert "million parameters takes about" in memory.sentence


def test_a_sound_configuration_has_no_findings_and_leaves_nothing(config: AlmConfig, tmp_path: Path) -> None:
    assert findings_of(config, tmp_path / "deep" / "data") == []
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_found_at_once(config: AlmConfig, tmp_path: Path) -> None:
    """One of each part, of which none hides another, and the run's error has all of them."""
    wrong = {
        "corpus.source.urls": ["no/file.jsonl"],
        "teacher": "no/such",
        "train.freeze": ["*.none.*", "*.nothing.*"],
        "train.processes": 2,
        "train.accumulation": 3,
        "log.report_to": ["mlflow"],
    }
    changed = with_settings(config, wrong)
    found = findings_of(changed, tmp_path)
    fields = ["teacher", "corpus.source.urls", "train.freeze", "train.freeze", "train.accumulation", "log.report_to"]
    assert [item.field for item in found] == fields
    with pytest.raises(UserError, match=r"^6 problems would stop this run:\n- teacher: no/such\n") as error:
        Pipeline(changed, str(tmp_path)).run()
    assert all(item.sentence in str(error.value) for item in found)
    assert list(tmp_path.iterdir()) == []


def test_what_both_sides_name_is_found_for_both(config: AlmConfig, tmp_path: Path) -> None:
    found = findings_of(with_settings(config, {"teacher": "no/such", "student.model": "no/such"}), tmp_path)
    assert [item.field for item in found] == ["teacher", "student.model"]


def test_secrets_are_not_shown(config: AlmConfig, tmp_path: Path) -> None:
    url = "https://me:hunter2@127.0.0.1:9/a.jsonl?sig=hunter2"
    found = findings_of(with_settings(config, {"corpus.source.urls": [url]}), tmp_path)
    assert [item.severity for item in found] == ["warning"], "a server that is away may be there when the run reads"
    assert "hunter2" not in "".join(item.text for item in found)


SOUND: dict[str, Change] = {
    "templates with what they read": lambda _, folder: {
        **with_tools(folder), "student.template": "chatml",
        "teacher_template": {"template": "plain", "arguments": {"enable_thinking": False, "tools": [{"name": "x"}]}}},
    "a template of the student's new tokenizer": lambda start, folder: {
        **chats(folder), "student.tokenizer": start.teacher, "student.template": "plain"},
    "a template of bytes": lambda _, folder: {
        **chats(folder), "student.tokenizer": "bytes", "student.template": "chatml"},
    "steps of zero train nothing": lambda *_: {"train.steps": 0, "train.freeze": ["none"], "train.attention": "none"},
    "rows of one example": lambda start, folder: {**mixing_model(start, folder), "train.row_tokens": 1},
    "both begin a text": lambda start, _: {"student.tokenizer": start.teacher, "train.learning_rates": {"*": 1e-3}},
    "bytes": lambda *_: {"student.tokenizer": "bytes", "student.ngram_embeddings": True,
                         "train.freeze": ["lm_head.weight"]},
    "trained": lambda *_: {"student.tokenizer": {"vocab_size": 320}, "student.initialization": "focus"},
    "adapters": lambda *_: {"train.lora": {"targets": ["*.self_attn.*"]}, "train.learning_rates": {"*lora_A*": 1e-3}},
    "live terms": lambda *_: {"objective.terms": {"alm": 1, "latents": 1, "uld": 1, "dskd": 1},
                              "train.learning_rates": {"alm_projections.dskd.*": 1e-3}},
    "sampling without do_sample": lambda start, folder: {
        "student.model": edited(start.student.model, folder, "generation_config.json", temperature=0.6, top_p=0.9)},
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_what_a_run_can_do_is_not_refused(case: str, config: AlmConfig, tmp_path: Path) -> None:
    found = findings_of(with_settings(config, SOUND[case](config, tmp_path)), tmp_path / "data")
    assert found == []


def test_only_what_the_phases_need_is_checked(config: AlmConfig, tmp_path: Path) -> None:
    """Caches can be made where nothing is trained, and a machine is asked for what it does itself."""
    training = {"corpus.held_out": 0, "log.report_to": ["mlflow"], "train.freeze": ["none"]}
    changed = with_settings(config, {**training, "score.devices": ["cuda:7"]})
    scores = findings_of(changed, tmp_path, phases=("prepare", "score"))
    assert [item.field for item in scores] == ["score.devices"]
    elsewhere = findings_of(changed, tmp_path, here=("prepare",))
    assert [item.field for item in elsewhere] == ["corpus.held_out", "train.freeze"]


def test_what_is_finished_is_not_stopped(config: AlmConfig, tmp_path: Path) -> None:
    """There is nothing left to do, so it does not matter that it could not be done here again."""
    finished = Pipeline(config, str(tmp_path)).run()
    logged = config.model_copy(update={"log": config.log.model_copy(update={"report_to": ("mlflow",)})})
    assert Pipeline(logged, str(tmp_path)).run() == finished


def test_every_check_is_in_the_registry() -> None:
    modules = (conversations, corpus, engines, models, output, scores, settings, student, templates, unread)
    public = {
        value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == {check.run for check in CHECKS}
