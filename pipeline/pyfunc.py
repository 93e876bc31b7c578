"""MLflow's way to a bundle: `mlflow.pyfunc.load_model("models:/vae@champion")` imports this."""

import numpy as np
import numpy.typing as npt
import torch

from pipeline.vae import VAE, load_bundle


class MomentsModel:
    """Images uint8 [N, C, H, W], preprocessed, to moments float32 [N, 2Z, h, w].

    The first Z channels are the posterior's mean, the others its log-variance.
    """

    def __init__(self, vae: VAE) -> None:
        self._vae = vae.eval()

    def predict(
        self, model_input: npt.NDArray[np.uint8], params: object = None
    ) -> npt.NDArray[np.float32]:
        """Encodes one array of images; `params` is MLflow's, and not used."""
        images = torch.from_numpy(np.ascontiguousarray(model_input))
        with torch.inference_mode():
            posterior = self._vae.encode(images)
            moments = torch.cat([posterior.mean, posterior.log_variance], dim=1)
        return moments.cpu().numpy()


def _load_pyfunc(path: str) -> MomentsModel:
    """What MLflow calls; the checksums of the bundle are verified.

    MLflow has no word for the classes that a caller allows: a bundle of a class of somebody's own
    is refused here, and loaded by `pipeline.load_model(uri, allow_custom=[...])`.
    """
    return MomentsModel(load_bundle(path))
