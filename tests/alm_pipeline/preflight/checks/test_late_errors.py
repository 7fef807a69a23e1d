"""Every UserError of the stages after the corpus: it is brought forward by a check, or there is a reason why not."""

import ast
from collections.abc import Iterator
from pathlib import Path

from alm_pipeline.preflight.checks.registry import CHECKS

ROOT = Path(__file__).parents[4] / "alm_pipeline"
ROOMS = ("scoring", "training", "transfer", "alignment", "tokenization", "evaluation", "new_tokenizer", "objective")
RAISING = ("UserError", "TemplateRefused", "user_error")

EARLY = {
    "alignment/one_sided.py refuse_one_sided": "sides_show_the_same",
    "alignment/one_sided.py require_aligned_conversations": "sides_show_the_same",
    "evaluation/bits_per_byte.py bits_per_byte": "texts_have_predictions",
    "evaluation/held_out.py _nothing": "held_out",
    "evaluation/held_out.py HeldOutCheck.require": "held_out",
    "new_tokenizer/byte_level.py _checked": "new_tokenizer",
    "new_tokenizer/special_tokens.py _backend": "new_tokenizer",
    "objective/chunking/merging.py _check_likelihoods": "boundaries",
    "objective/prefix_table.py check_white_space": "likeliest_tokens",
    "objective/term_weights.py layers": "execution",
    "objective/term_weights.py require_last_layer": "trained_parameters",
    "scoring/served/client.py _json": "engine",
    "scoring/served/engines.py HttpEngine.rows": "engine",
    "scoring/served/engines.py HttpEngine.vllm": "engine",
    "scoring/served/engines.py VllmEngine.start": "engine",
    "scoring/served/engines.py _json": "engine",
    "scoring/served/engines.py _sglang_facts": "engine",
    "scoring/served/engines.py _vllm_facts": "engine",
    "scoring/served/vocabulary.py ServedVocabulary.of": "engine",
    "scoring/served/checking.py ServedCheck._check_quantization": "engine",
    "scoring/served/checking.py ServedCheck.check": "engine",
    "scoring/windows.py WindowPlan.of": "windows",
    "tokenization/chat/template.py ChatTemplate._source": "templates_show_conversations",
    "tokenization/chat/template.py apply_template": "templates_show_conversations",
    "tokenization/encoder.py ByteEncoder._check_rows": "teacher_is_readable",
    "tokenization/stage.py _check_template": "templates_show_conversations",
    "tokenization/templates/choice.py TemplateChoice._decoded": "teacher_is_readable",
    "tokenization/templates/choice.py TemplateChoice._named": "teacher_is_readable",
    "tokenization/templates/choice.py TemplateChoice.file_content": "teacher_is_readable",
    "tokenization/templates/syntax.py check_syntax": "teacher_is_readable",
    "tokenization/stage.py _require_shown": "sides_show_the_same",
    "training/distillation.py require_top": "likeliest_tokens",
    "training/loop/installed.py check_tracker": "trackers",
    "training/model/adapters.py attach_adapters": "trained_parameters",
    "training/model/execution.py _activation_checkpointing": "execution",
    "training/model/execution.py using_attention": "execution",
    "training/model/isolation.py check_isolation": "packed_rows",
    "training/model/isolation.py check_positions": "student_can_be_trained",
    "training/model/parameters.py check_patterns": "trained_parameters",
    "training/model/parameters.py freeze": "trained_parameters",
    "training/model/terms.py linear_head": "linear_heads",
    "training/parallel/processes.py check_equal_shares": "shares_of_processes",
    "training/student/publish.py push": "hub",
    "training/student/save.py beyond_range": "weights_are_whole",
    "training/student/save.py save_description": "student_can_be_saved",
    "transfer/bytes/byte_model.py check_architecture": "byte_level_model",
    "transfer/initialization.py donor_ids": "new_tokenizer",
    "transfer/initialization.py find_donor": "new_tokenizer",
}
"""The check that brings an error forward, wholly or where the first rows of the corpus show it."""

NUMBERS = "the numbers that are computed decide it"
STORED = "it is about what an earlier stage has stored"
MEANWHILE = "something changes during the run"
RESUMING = "it is about a checkpoint of an interrupted run"
COMMAND = "it is a command's own, and not part of a run"
LATE = {
    "alignment/stage.py _check_same_examples": STORED,
    "alignment/stage.py align_datasets": STORED,
    "evaluation/bits_per_byte.py _check_finite": NUMBERS,
    "evaluation/local_tasks.py _check": COMMAND,
    "evaluation/local_tasks.py write_task": COMMAND,
    "scoring/finite.py check_stored_scores": STORED,
    "scoring/backends/choice.py named_kind": "the environment of the machine that scores decides it",
    "scoring/backends/compiled.py compile_layers": "only a model without layers has it",
    "scoring/processes.py score_in_processes": MEANWHILE,
    "scoring/scorer.py Scorer._batches": NUMBERS,
    "scoring/scorer.py Scorer._score": NUMBERS,
    "scoring/served/client.py Client": "the server may be there when the run needs it",
    "scoring/served/engines.py VllmEngine.rows": NUMBERS,
    "scoring/served/server.py StartedServer.wait_until_ready": "the server is started when there is something to score",
    "scoring/served/checking.py ServedCheck.check_names": "the probe compares the models once scoring begins",
    "scoring/served_scorer.py ServedScorer._check_rows": "only some texts of a corpus have it",
    "scoring/served/probes.py check_close": NUMBERS,
    "scoring/served/probes.py check_scale": NUMBERS,
    "tokenization/chat/tracing.py placeholders": "only a conversation of thousands of messages has it",
    "tokenization/encoder.py ByteEncoder._bodies": "only some texts of a corpus have it",
    "tokenization/stage.py tokenize": STORED,
    "tokenization/templates/choice.py TemplateChoice.of_option": COMMAND,
    "training/data/batch_stream.py BatchStream._check_reader": RESUMING,
    "training/data/mixture.py MixedPosition.of_state": RESUMING,
    "training/data/mixture.py whole_shares": "the configuration refuses such weights",
    "training/data/row_stream.py RowStream._require_rows": "`require_examples` brings it forward, before the scores",
    "training/data/row_stream.py RowStream._restored.read": RESUMING,
    "training/data/row_stream.py RowStream.blocks": "`require_examples` brings it forward, before the scores",
    "training/distillation.py Distillation.check_unchanged": MEANWHILE,
    "training/loop/checkpoints.py load_weights": RESUMING,
    "training/loop/checkpoints.py problem_of": RESUMING,
    "training/loop/evaluations.py Evaluations.begin": "the scores decide which chunks there are",
    "training/loop/evaluations.py _check": NUMBERS,
    "training/loop/train.py _train_to_the_end": RESUMING,
    "training/loop/trainer.py AlmTrainer._save_checkpoint": NUMBERS,
    "training/loop/trainer.py AlmTrainer.log": NUMBERS,
    "training/parallel/launch.py _error": MEANWHILE,
    "training/stage.py _check_same_on_all_machines": "it is about several machines",
    "training/student/curves.py _valid": COMMAND,
    "training/student/curves.py draw_curves": COMMAND,
    "training/student/curves.py read_curves": COMMAND,
    "training/student/publish.py stored_student": COMMAND,
    "training/student/save.py round_weights": NUMBERS,
    "transfer/swap.py new_rows": NUMBERS,
    "transfer/zero_step.py _require_hypernetwork": COMMAND,
    "transfer/task_arithmetic.py _MergedVocabulary.of": COMMAND,
    "transfer/task_arithmetic.py _check": COMMAND,
    "transfer/task_arithmetic.py _empty_model": COMMAND,
    "transfer/weights.py Weights.__init__": COMMAND,
    "transfer/weights.py Weights.read": COMMAND,
    "transfer/weights.py _stored": COMMAND,
}
"""Why no check brings an error forward."""


def raising_functions(file: Path) -> Iterator[str]:
    """The functions of a module that make a UserError, by their dotted names."""

    def within(node: ast.AST, name: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in RAISING:
                yield name
            yield from within(child, inner)

    return within(ast.parse(file.read_text()), "")


def test_every_error_is_early_or_has_a_reason() -> None:
    found = {
        f"{file.relative_to(ROOT)} {name}"
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        for name in raising_functions(file)
    }
    assert found == EARLY.keys() | LATE.keys()
    assert not EARLY.keys() & LATE.keys()
    assert set(EARLY.values()) <= {check.run.__name__ for check in CHECKS}
