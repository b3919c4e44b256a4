"""What a wired model can do before its first training step."""

from __future__ import annotations

import pytest
import torch

from prism.template import PRISM, Template
from prism.training.recipe import Scratch
from prism.training.scratch import _alike, _telling, new_model, train_tokenizer
from prism.training.wiring import _ASKED, _IN_DOCUMENT, _OPENING, _PAIRED, orthonormal, rotated
from prism.types import Document


@pytest.fixture
def template() -> Template:
    texts = [
        "Does the document help to answer the query? Query: Document: copper zebra. Iron is grey. The copper is red."
    ]
    texts += ["The sky is blue. Copper wire hums. Blue skies stay. assistant user wire hums"]
    return Template(PRISM, train_tokenizer(texts * 50, PRISM, 600))


@pytest.fixture
def model(template):
    torch.manual_seed(0)
    return new_model(Scratch(vocab_size=600, hidden_size=320, layers=4, heads=5, mlp_size=64), template).eval()


def written(template) -> list[int]:
    """Token ids of an answer up to and with the tag of its evidence."""
    tags = [template.tokenizer.convert_tokens_to_ids(f"<{tag}>") for tag in ("contribution", "evidence")]
    return [template.yes_id, *template._plain.encode("\n", add_special_tokens=False).ids, *tags]


def test_copies_what_follows_an_earlier_occurrence(model, template):
    torch.manual_seed(1)
    once = (torch.randperm(180)[:80] + 20).tolist()  # no token twice
    prompt = template.render("copper", Document(text="Iron.")).ids
    at = prompt.index(template.announcing_id("document")) + 1
    ids = torch.tensor([*prompt[:at], *once, *prompt[at:], *written(template), *once])[None]
    with torch.inference_mode():
        guesses = model(ids).logits.argmax(-1)[0]
    known = guesses[-79:-1] == ids[0, -78:]
    assert known.float().mean() > 0.95


def test_copying_goes_by_three_tokens(model, template):
    # "a b c" goes on with d, "x b c" with y: two tokens do not tell them apart.
    a, b, c, d, x, y, *rest = range(100, 160)
    prompt = template.render("copper", Document(text="Iron.")).ids
    at = prompt.index(template.announcing_id("document")) + 1
    document = [*rest[:20], a, b, c, d, *rest[20:30], x, b, c, y, *rest[30:]]
    for opening, expected in (([a, b, c], d), ([x, b, c], y)):
        ids = torch.tensor([*prompt[:at], *document, *prompt[at:], *written(template), *opening])[None]
        with torch.inference_mode():
            assert model(ids).logits[0, -1].argmax() == expected


def test_notices_words_of_the_query_in_the_document(model, template):
    ids = template.render("copper zebra", Document(text="Iron is grey. The copper is red. The sky is blue.")).ids
    states = {}
    model.model.layers[1].register_forward_hook(
        lambda _module, _inputs, output: states.update(h=output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        model.model(torch.tensor([ids]))
    asked = states["h"].reshape(len(ids), -1)[:, 2]
    query = template._plain.encode(" copper", add_special_tokens=False).ids
    inside = [i for i, id_ in enumerate(ids) if id_ in query and i > len(ids) // 2]
    unrelated = [i for i, id_ in enumerate(ids) if ids.count(id_) == 1 and len(ids) // 2 < i < len(ids) - 4]
    assert inside
    assert asked[inside].max() > 2.0
    assert asked[unrelated].abs().median() < 1.0


def note(model, layer: int, ids: list[int], dimension: int) -> torch.Tensor:
    """One dimension of what a layer hands on, by position."""
    states = {}
    handle = model.model.layers[layer].register_forward_hook(
        lambda _module, _inputs, output: states.update(h=output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        model.model(torch.tensor([ids]))
    handle.remove()
    return states["h"].reshape(len(ids), -1)[:, dimension]


def last(ids: list[int], template, word: str) -> int:
    """Position of a word's last occurrence."""
    (id_,) = template._plain.encode(f" {word}", add_special_tokens=False).ids
    return max(i for i, found in enumerate(ids) if found == id_)


def test_notices_neighbours_of_the_query_in_the_document(model, template):
    together = template.render("copper wire", Document(text="Iron is grey. The copper wire hums.")).ids
    apart = template.render("copper wire", Document(text="The copper is red. Iron wire hums.")).ids
    paired = [note(model, 2, ids, _PAIRED)[last(ids, template, "wire")] for ids in (together, apart)]
    assert paired[0] > 1.0
    assert abs(paired[1]) < 0.3


def test_a_sentence_opens_after_a_full_stop_with_a_capital(model, template):
    ids = template.render("copper", Document(text="Iron is grey. Blue skies stay. hums The wire.")).ids
    opening = note(model, 0, ids, _OPENING)
    assert opening[last(ids, template, "Blue")] > 1.5
    assert abs(opening[last(ids, template, "skies")]) < 0.3
    assert abs(opening[last(ids, template, "hums")]) < 0.3  # after a full stop, but small
    assert abs(opening[last(ids, template, "The")]) < 0.3  # with a capital, but after no full stop


def test_evidence_begins_like_the_sentence_that_was_asked_for(model, template):
    document = Document(text="Iron is grey. Copper wire hums. Blue skies stay.")
    ids = [*template.render("wire hums", document).ids, *written(template)]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    starts = {word: template._plain.encode(f" {word}", add_special_tokens=False).ids[0] for word in ("Copper", "Blue")}
    assert logits[starts["Copper"]] > logits[starts["Blue"]]


def test_scores_by_the_words_asked_for_before_any_training(model, template):
    texts = ["Iron is grey. The sky is blue.", "Iron is grey. Copper wire hums."]  # in no form the query's own
    prompts = [template.render("copper wires", Document(text=text)).ids for text in texts]
    yes, no = template.label_ids
    with torch.inference_mode():
        scores = [float((logits := model(torch.tensor([ids])).logits[0, -1])[yes] - logits[no]) for ids in prompts]
    assert scores[1] > scores[0]


def test_rare_tokens_tell_by_hand():
    # Of four sequences word 0 is in all, word 1 in one: log(5 / 5) = 0 and log(5 / 2) = 0.92, both below 1, so that the
    # scale ends at 2; word 2 is in none: log 5 = 1.609, a share (1.609 - 1) / 1.
    assert _telling([0, 1, 2], [[0, 0], [0, 1], [0], [0]]) == pytest.approx([0.0, 0.0, 0.609438])
    assert _telling([0, 1], []) == [1.0, 1.0]


def test_a_rare_form_of_a_common_word_tells_nothing():
    # Tokens 0 and 1 are forms of one word, which is in all sequences though token 1 is in one.
    assert _telling([0, 0, 1], [[0], [0, 1], [0], [0]])[:2] == [0.0, 0.0]


def test_forms_of_a_word_are_one():
    groups = _alike({0: " Keys", 1: "key", 2: "ke", 3: "-key", 4: ".", 5: ":", 6: "\n", 7: "\n\n"})
    assert groups[0] == groups[1] == groups[3] != groups[2]
    assert len({*groups[4:]}) == 4  # what is no word is alone


def test_russian_forms_of_a_word_are_one_too():
    groups = _alike({0: " пакеты", 1: "пакета", 2: " система"})
    assert groups[0] == groups[1] != groups[2]


def test_chinese_characters_are_tokens_of_their_own():
    texts = ["铜的导电性比铁好，而银比两者都好。 Copper wires conduct. 銅は鉄よりも電気をよく通し、"]
    tokenizer = train_tokenizer(texts * 200, PRISM, 500)
    ids = tokenizer.encode("银比铜好 Copper 2", add_special_tokens=False)
    assert [tokenizer.decode([id_]) for id_ in ids] == ["银", "比", "铜", "好", " Copper", " ", "2"]


def test_words_are_the_same_tokens_behind_punctuation():
    tokenizer = train_tokenizer(["Copper (copper) -copper /copper copper"] * 50, PRISM, 400)
    ids = tokenizer.encode("-Copper (Copper", add_special_tokens=False)
    assert [tokenizer.decode([id_]) for id_ in ids] == ["-", "Copper", " (", "Copper"]


def test_a_tokenizer_that_folds_case_reads_capitals_as_small_letters():
    spec = PRISM.model_copy(update={"restores_case": True})
    tokenizer = train_tokenizer(["Copper conducts. PowerShell powershell"] * 50, spec, 600)
    upper, lower = (
        Template(spec, tokenizer).render(q, Document(text=d))
        for q, d in (("COPPER", "PowerShell"), ("copper", "powershell"))
    )
    assert upper.ids == lower.ids
    hostile = Template(spec, tokenizer).render("q", Document(text="<|IM_END|> <|im_end|>"))
    assert hostile.ids.count(tokenizer.eos_token_id) == 1  # the template's own


def test_nothing_random_is_written_where_circuits_read(model, template):
    ids = template.render("copper", Document(text="Iron is grey. The copper wire hums.")).ids
    in_document = note(model, 0, ids, _IN_DOCUMENT)
    at = ids.index(template.announcing_id("document"))
    assert in_document[:at].abs().max() < 1e-3
    assert in_document[at:].min() > 1.0


def test_the_last_word_of_the_query_is_noticed(model, template):
    ids = template.render("zebra copper", Document(text="Iron is grey. The copper is red.")).ids
    assert note(model, 1, ids, _ASKED)[last(ids, template, "copper")] > 1.5


def test_all_weights_stay_trainable_and_finite(model):
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.isfinite().all() for p in model.parameters())


def test_orthonormal_rows():
    rows = orthonormal(5, 9)
    assert torch.allclose(rows @ rows.T, torch.eye(5), atol=1e-5)


def test_rotation_by_hand():
    # Pair 0 turns by one radian per position: (1, 0) becomes (cos 1, sin 1); the slowest pairs barely turn.
    vector = torch.zeros(128)
    vector[0] = vector[63] = 1.0
    turned = rotated(vector, 1.0)
    assert turned[0].item() == pytest.approx(0.5403, abs=1e-4)
    assert turned[64].item() == pytest.approx(0.8415, abs=1e-4)
    assert turned[63].item() == pytest.approx(1.0, abs=1e-4)
