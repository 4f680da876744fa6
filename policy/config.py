"""The policy's settings: checkpoint, number format, trained part, and the templates of both stages."""

from typing import Literal, Self

from pydantic import Field, model_validator

from policy.settings import Settings

INSTRUCTION = (
    'Plan a picture for this prompt: "{prompt}"\n'
    "Describe in at most 50 words what is to be seen: every object of the prompt, its colour, shape, texture and "
    "number, and where the objects stand to one another. Work out what the prompt only hints at, and add nothing "
    "that it does not ask for. Answer with the description alone."
)


Join = Literal["sentence", "verbatim"]
"""How stage 2 joins prompt and CoT."""

Pixels = Literal["round", "truncate"]
"""How a pixel's value becomes a whole byte."""


class Templates(Settings):
    """The wording of both stages. Stage 1 asks for the semantic-level CoT, stage 2 for the picture."""

    system: str = Field("", description="System text before the turn of stage 1; empty for none.")
    instruction: str = Field(
        INSTRUCTION, description="User text of stage 1, with a {prompt} slot; or {file: PATH} to read it from a file."
    )
    image: str = Field("{prompt}. {cot}", description="User text of stage 2, with {prompt} and {cot} slots.")
    join: Join = Field(
        "sentence",
        description="How prompt and CoT fill the slots of `image`. sentence: the prompt loses a full stop at its "
        "end, the CoT loses space around it, and with an empty CoT the user text is the prompt alone. verbatim: both "
        "stay unchanged, as in T2I-R1's script: a prompt that ends in a full stop gets a second one, a CoT keeps its "
        "leading space, and an empty CoT leaves the template's full stop.",
    )
    chat: str = Field(
        "<|User|>: {user}\n\n<|Assistant|>:",
        description="One chat turn, with a {user} slot. The default has the role tokens that Janus-Pro was trained "
        "with. T2I-R1's script writes plain 'User: {user}\\n\\nAssistant:', in training and inference; use that "
        "text with the released T2I-R1 checkpoint.",
    )

    @model_validator(mode="after")
    def _slots(self) -> Self:
        slots = {"instruction": ["{prompt}"], "image": ["{prompt}", "{cot}"], "chat": ["{user}"]}
        for name, needed in slots.items():
            text: str = dict(self)[name]
            for slot in needed:
                if text.count(slot) != 1:
                    raise ValueError(f"{name} must hold the slot {slot} exactly once")
        return self


class PolicyConfig(Settings):
    """The Janus policy: the run samples and trains it."""

    checkpoint: str = Field(description="Folder of a Janus checkpoint, in the Hugging Face or the original layout.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Number format of the weights.")
    trained: Literal["language_model", "generation"] = Field(
        "language_model",
        description="language_model: embeddings, layers and lm_head (the paper); "
        "generation: also the image embeddings, image aligner and image head.",
    )
    templates: Templates = Templates()
