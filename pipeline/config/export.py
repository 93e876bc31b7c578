"""The knobs of `jobs.export`."""

from typing import Literal

from pydantic import Field

from pipeline.config.sections import A_NEW_FOLDER, A_STORE, SIZE, Section, Url


class ExportConfig(Section):
    """`jobs.export`: a store as WebDataset tars."""

    store: Url = Field(description=A_STORE)
    output: Url = Field(description=A_NEW_FOLDER)
    size: int | None = Field(None, gt=0, description=SIZE)
    format: Literal["npy", "safetensors"] = Field("npy", description="How tensors are stored.")
