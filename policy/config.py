"""What a run says about its policy: the checkpoint, the number format, what trains, and how it is asked."""

from typing import Literal, Self

from pydantic import Field, model_validator

from policy.settings import Settings

INSTRUCTION = (
    'Plan a picture for this prompt: "{prompt}"\n'
    "Describe in at most 50 words what is to be seen: every object of the prompt, its colour, shape, texture and "
    "number, and where the objects stand to one another. Work out what the prompt only hints at, and add nothing "
    "that it does not ask for. Answer with the description alone."
)


class Templates(Settings):
    """The wording of both stages. Stage 1 asks for the semantic-level CoT, stage 2 for the picture."""

    system: str = Field("", description="System text before the turn of stage 1; empty for none.")
    instruction: str = Field(
        INSTRUCTION, description="User text of stage 1, with a {prompt} slot; or {file: PATH} of it."
    )
    image: str = Field("{prompt}. {cot}", description="User text of stage 2, with {prompt} and {cot} slots.")
    chat: str = Field(
        "<|User|>: {user}\n\n<|Assistant|>:",
        description="One chat turn in the model's format, with a {user} slot.",
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
    """The Janus policy that is trained and sampled."""

    checkpoint: str = Field(description="Folder of a Janus checkpoint, in the Hugging Face or the original layout.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Number format of the weights.")
    trained: Literal["language_model", "generation"] = Field(
        "language_model",
        description="language_model: embeddings, layers and lm_head (the paper); "
        "generation: also the image embeddings, image aligner and image head.",
    )
    templates: Templates = Templates()
