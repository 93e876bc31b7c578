"""Answers about the latent space and about images: what is shown, and only where it shows."""

from pipeline.evaluation.numbers import Numbers
from pipeline.explanation.sentences import Check, Formula, Part, Sentence, claim, definition

_TELLING = 0.1
"""What must have shown before "there is none of it" is said: a tenth of the images' labels, or of
the difference between any two images.
"""


def at_mean(n: Numbers) -> Part:
    """Jensen."""
    return Part(
        "at_mean",
        "Can I put the mean of q into the decoder instead of a draw?",
        (
            claim(
                Check.AT_MEAN,
                "E_q log p(x|z) is {log_likelihood:.3f}; log p(x|z) at the mean of q is "
                "{log_likelihood_at_mean:.3f}, {lift:+.3f} from it.",
                log_likelihood=n.log_likelihood,
                log_likelihood_at_mean=n.log_likelihood_at_mean,
                lift=n.log_likelihood_at_mean - n.log_likelihood,
            ),
            definition(
                "The second is fine for pictures and is no term of any bound: an ELBO with it "
                "would be wrong by that much."
            ),
        ),
    )


def continuity(n: Numbers) -> Part | None:
    """A property of the decoder; coverage, which noise and KL bring, is another question."""
    path = n.interpolation
    if path is None:
        return None
    return Part(
        "continuity",
        "Do images change without jumps between codes?",
        (
            claim(
                Check.JUMPS,
                "Along {pairs} straight walks between codes the largest step is {jump:.4f} "
                "(root-mean-square pixel difference, images in [0, 1]), and taking twice as many "
                "steps leaves {jump_ratio:.3f} of it: 0.5 is continuous, 1 a jump. Paths are "
                "{length:.4f} long where a straight cross-fade has {direct:.4f}.",
                pairs=path.pairs,
                jump=path.jump,
                jump_ratio=path.jump_ratio,
                length=path.length,
                direct=path.direct,
            ),
            definition(
                "This is the decoder's doing: networks of continuous layers are continuous, with "
                "or without noise and KL, so it is no evidence for a VAE. What they add is "
                "coverage, the next question."
            ),
        ),
        picture="interpolations.png",
    )


def coverage(n: Numbers) -> Part | None:
    """Do codes fill the space that the prior draws from?"""
    mixture = n.mixture
    if mixture is None:
        return None
    text = (
        "A mixture fitted to half of the codes describes the other half {gain:+.3f} nats better "
        "than the prior does, standard error {error:.3f}: "
    )
    if mixture.gain > 2 * mixture.error:
        text += "codes leave parts of the prior empty, and draws of the prior land there."
    elif mixture.gain > 0:
        text += "that may be chance, so that nothing shows that codes leave a place empty."
    else:
        text += "it found no place that codes leave empty."
    return Part(
        "coverage",
        "Does every place between the codes mean something?",
        (
            claim(Check.COVERAGE, text, gain=mixture.gain, error=mixture.error),
            definition(
                "Noise makes a code a cloud: the decoder is asked for the image not at one point "
                "but wherever q(z|x) puts weight, and on average over it. The KL charges for "
                "clouds that shrink to points or lie far from the prior, so that together they "
                "come near to filling it. Without both, nothing asks anything of the decoder "
                "between the codes: a plain autoencoder may leave holes there."
            ),
        ),
        picture="samples_mixture.png",
    )


def similar_codes(n: Numbers) -> Part | None:
    """Why similar images lie together, only where they do."""
    found = n.similarity
    if found is None:
        return None
    figures = {
        "images": found.images,
        "neighbours": found.neighbours,
        "nearest": found.nearest,
        "any": found.any,
        "error": found.error,
    }
    text = (
        "Among {images} images with one draw of z each, an image and those of its {neighbours} "
        "nearest codes differ by {nearest:.4f} (root-mean-square), any two by {any:.4f} (standard "
        "error of the difference {error:.4f}): "
    )
    sentences = []
    if found.nearest < found.any - 2 * found.error:
        sentences.append(
            claim(Check.SIMILAR_CODES, text + "similar images have similar codes.", **figures)
        )
        sentences.append(
            definition(
                "Why they do: z comes with noise, so the decoder mistakes a code for those beside "
                "it, and the likelihood suffers least where these images look alike; and the "
                "decoder is smooth, so near codes decode to like images. It is not the KL: it is "
                "charged image by image and does not know where other images' codes lie."
            )
        )
    elif 2 * found.error > _TELLING * found.any:
        few = "so few images can't tell whether near codes are of similar ones."
        sentences.append(claim(Check.SIMILAR_CODES, text + few, **figures))
    else:
        sentences.append(
            claim(
                Check.SIMILAR_CODES,
                text + "near codes say nothing of their images here, so there is nothing to "
                "explain.",
                **figures,
            )
        )
    return Part("similar", "Do similar images lie together, and why?", sentences)


def classes(n: Numbers) -> Part | None:
    """Labels, only where they group; that they don't, only where it would have shown."""
    found = n.neighbours
    if found is None:
        return None
    figures = {
        "agreement": found.agreement,
        "neighbours": found.neighbours,
        "shuffles": found.shuffles,
        "shuffled": found.shuffled,
        "needed": found.needed,
    }
    whose = (
        "that most of their {neighbours} nearest codes' images have"
        if found.neighbours > 1
        else "of the image with the nearest code"
    )
    text = (
        "{agreement:.3f} of the images have the label " + whose + "; with the labels shuffled "
        "among the images it is {shuffled:.3f} on average, and one of {shuffles} shuffles passes "
        "{needed:.3f}: "
    )
    told: tuple[Sentence, ...]
    if found.agreement > found.needed:
        told = (
            claim(Check.LABELS, text + "labels group, though no loss has seen one.", **figures),
            definition(
                "Images of one label group as far as they look alike to the decoder, for the "
                "reasons above. Labels that look alike stay mixed whatever the training does."
            ),
        )
    elif found.needed - found.shuffled > _TELLING:
        few = "{images} images are too few to tell whether labels group."
        told = (claim(Check.LABELS, text + few, **figures, images=found.images),)
    else:
        told = (claim(Check.LABELS, text + "labels do not group here.", **figures),)
    return Part(
        "classes",
        "Where do classes in latent space come from, when the loss has never seen one?",
        told,
        picture="latent_means.png",
    )


def information(n: Numbers) -> Part | None:
    """ELBO surgery, with its cap."""
    found = n.surgery
    if found is None:
        return None
    figures = {
        "images": found.images,
        "kl": found.kl,
        "mutual_information": found.mutual_information,
        "marginal_kl": found.marginal_kl,
        "cap": found.cap,
    }
    where = "training set" if found.of == "training" else "hold-out"
    text = "On {images:,} images of the " + where + " the mean KL {kl:.3f} is the mutual "
    if found.is_at_cap:
        text += (
            "information of image and code, >= {mutual_information:.3f}, plus KL(q(z) || p(z)), "
            "<= {marginal_kl:.3f}. The first stands at its cap, log N = {cap:.3f}: N images can't "
            "show more, so the true one may be far larger, and the second far smaller."
        )
    else:
        text += (
            "information of image and code, {mutual_information:.3f}, plus KL(q(z) || p(z)), "
            "{marginal_kl:.3f}; log N = {cap:.3f} caps the first."
        )
    return Part(
        "information",
        "How much does z know about x?",
        (
            claim(Check.INFORMATION, text, **figures),
            definition(
                "q(z) is the average of q(z|x) over the images. Where it differs from the prior, "
                "draws of the prior land where no image's code lies."
            ),
        ),
        (
            Formula(
                "E_x KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || p(z))",
                r"E_x KL(q(z|x) \, \| \, p(z)) = I(x; z) + KL(q(z) \, \| \, p(z))",
            ),
        ),
        "aggregated_posterior.png",
    )


def active(n: Numbers) -> Part:
    """Active units."""
    return Part(
        "active",
        "How many latent dimensions are used?",
        (
            claim(
                Check.ACTIVE,
                "{active_units} of {latent_dimensions}: those whose posterior mean varies over "
                "images by more than 0.01 (Burda et al. 2016).",
                active_units=n.active_units,
                latent_dimensions=n.latent_dimensions,
            ),
            definition(
                "A dimension whose q is the prior for every image costs nothing, tells the decoder "
                "nothing, and is no error. A lower weight of the KL, a warm-up of it, or a weaker "
                "decoder may bring more into use."
            ),
        ),
        picture="kl_per_dimension.png",
    )


def samples(n: Numbers) -> Part:
    """Samples beside reconstructions, by a distance that does not choose its neighbour."""
    found, distances = n.generation, n.distances
    sentences = []
    if distances:
        better = "worse" if distances.generation > distances.reconstruction else "no worse"
        told = f"samples are {better} by it."
        if distances.is_short:
            told = "so few images are too few to compare by it."
        sentences.append(
            claim(
                Check.SAMPLES,
                "The Fréchet distance to {images:,} real images, over {features}, is "
                "{generation:.4g} for {samples:,} samples and {reconstruction:.4g} for the "
                "reconstructions: ".replace("{features}", distances.features)
                + f"{told} It falls with the number of images, so compare equal ones.",
                images=distances.images,
                samples=distances.samples,
                generation=distances.generation,
                reconstruction=distances.reconstruction,
            )
        )
    sentences += [
        claim(
            Check.SAMPLES,
            "A sample's nearest of {compared_with} real images is at {psnr_nearest:.2f} dB, a "
            "reconstruction's own at {psnr_mean:.2f} dB.",
            compared_with=found.compared_with,
            psnr_nearest=found.psnr_nearest,
            psnr_mean=n.reconstruction.psnr_mean,
        ),
        definition(
            "These two decibels do not say which looks better: the nearest image is chosen after "
            "the fact, and a blurred image is near to many. They would tell of copies: a sample as "
            "near to a training image as its reconstruction. Samples differ from reconstructions "
            "in one thing, where z comes from: the prior, or an image's q."
        ),
    ]
    return Part(
        "samples",
        "Do samples look worse than reconstructions?",
        sentences,
        picture="samples.png",
    )


def bits(n: Numbers) -> Part:
    """Bits per dimension, or why there are none."""
    title = "Can I state bits per dimension?"
    if n.bits_per_dim is None:
        return Part(
            "bits",
            title,
            (
                definition(
                    "No: Bernoulli scores the binarised image, so its nats are not of the uint8 "
                    "image. State nats, with how it was binarised."
                ),
            ),
        )
    return Part(
        "bits",
        title,
        (
            claim(
                Check.BITS,
                "Yes: {bits_per_dim:.4f} = -ELBO / (D ln 2) with D = {pixels:,} pixels and "
                "channels, of the uint8 image. It is an upper bound on the model's own bits, as "
                "the ELBO is a lower one on its nats.",
                bits_per_dim=n.bits_per_dim,
                pixels=n.pixels,
            ),
            definition("A model that knows nothing, all 256 levels alike, has 8."),
        ),
    )


def reconstruction(n: Numbers) -> Part:
    """Blur."""
    found = n.reconstruction
    return Part(
        "reconstruction",
        "Why are reconstructions blurred?",
        (
            claim(
                Check.RECONSTRUCTION,
                "At the mean of q they reach {psnr_mean:.2f} dB, at a draw {psnr_sample:.2f} dB.",
                psnr_mean=found.psnr_mean,
                psnr_sample=found.psnr_sample,
            ),
            definition(
                "What is shown is the mean of p(x|z), an average over every image that this z "
                "allows; what z does not say comes out as its average. A likelihood that draws "
                "each pixel by itself has no texture beyond that mean, only noise."
            ),
        ),
        picture="reconstructions.png",
    )
