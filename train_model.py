"""Train a DCGAN on the images of a MedMNIST data set, ChestMNIST at 28x28 pixels by default.

    python train_model.py                                  train on ChestMNIST
    python train_model.py                                  the same again: resume where it stopped
    python train_model.py --DATASET=phantom --EPOCHS=10    a first try, without a download

Every constant below can be changed here or on the command line.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out
from common import errors, script

if __name__ == "__main__":
    script.prepare()  # before torch, which takes seconds

import copy
import functools
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common import checkpoint, distributed, files, hardware, log, metrics, runs, sampling
from common.cuda_graph import Step
from common.data import dataset, jpeg
from common.data.labels import count_labels, encode_labels
from common.ema import update_bn, update_ema
from common.errors import UserError
from common.schema import Model, Progress, Run
from common.threads import choose_threads
from dcgan import Discriminator, Generator, haar_bands, halve, texture_scales

# --- Data ---
DATASET = "chestmnist"  # a 2-D MedMNIST data set, "phantom" (drawn), or the path of your own images
SIZE = 28  # pixels, height and width of the images [28, 64, 128, 224]
LABELS_CSV = ""  # a table of labels for a folder of your own images; empty: folders are labels
DATA_DIR = "data"  # folder of the .npz files
TRAIN_FRACTION = 1.0  # seeded random part of the training split to use [0.0001 to 1.0]
CONDITIONAL = False  # learn the labels too, to draw images of a chosen finding [True, False]

# --- Training ---
EPOCHS = 50  # passes over the training images; a finished run goes on when raised [1 to 100000]
BATCH_SIZE = 64  # images per step [2 to 65536]
LATENT_DIM = 100  # length of the latent vector z [1 to 10000]
LEARNING_RATE = 1e-4  # step size of Adam, both networks [1e-8 to 1.0]
LR_DECAY_START = 2000  # steps after which it falls as 1 / step, to two fifths [1 to 1000000000]
BETA1 = 0.0  # Adam's decay of the gradient's mean; more costs recall [0.0 to 0.999]
R1 = 0.12  # weight of the gradient penalty on D at 64 pixels; 0: none [0.0 to 1000.0]
MATCHING = 0.3  # weight of matching_loss on G: detail varies; 0: none [0.0 to 1000.0]
EMA_HALF_LIFE = 10000  # of a weight in the moving average, images [0 to 1000000000]
SEED = 0  # of the weights, the latents and the order of the images [0 to 2147483647]

# --- Metrics ---
METRIC_IMAGES = 1000  # images compared with real ones after each epoch; 0 for none [0 to 20000]

# --- Hardware ---
DEVICE = "auto"  # auto: CUDA where there is one ["auto", "cpu", "cuda"]
DTYPE = "auto"  # of convolutions; auto: bfloat16 where it is fast ["auto", "float32", "bfloat16"]
THREADS = 0  # on a CPU; 0: what is faster now, a resumed run keeps its number [0 to 1024]
CUDA_GRAPHS = True  # replay a step on a GPU; what Python decides in it stays fixed [True, False]

# --- Files ---
RUN_NAME = ""  # folder of this run in MODELS_DIR and IMAGES_DIR; empty: the name of its data
MODELS_DIR = "models"  # checkpoints and logs go here
IMAGES_DIR = "images"  # generate_report.py draws into this folder
CHECKPOINT_MINUTES = 5.0  # longest time between two checkpoints, minutes [0.0 to 10000.0]
SNAPSHOT_EPOCHS = 1  # epochs between two kept generators, the frames of the GIF [1 to 100000]
RESUME = "auto"  # never: archive an existing run and start over ["auto", "never"]

# A run can be resumed when these have changed; any other constant would make it another run.
MAY_CHANGE = {"LABELS_CSV", "DATA_DIR", "EPOCHS", "DEVICE", "RUN_NAME", "MODELS_DIR", "IMAGES_DIR"}
MAY_CHANGE |= {"CHECKPOINT_MINUTES", "SNAPSHOT_EPOCHS", "RESUME", "THREADS", "CUDA_GRAPHS"}


@distributed.launch
def main(constants):
    """Check the settings, start a run or resume it, and train it to its last epoch."""
    global DTYPE  # where it is "auto", it becomes what this run computes in
    data = dataset.DataFile(dataset.check_name(DATASET, SIZE), DATA_DIR, SIZE)
    constants["DATASET"] = data.name  # no checkpoint holds the path
    constants["LABELS_CSV"] = os.path.basename(LABELS_CSV)
    device = hardware.choose_device(DEVICE)
    run_name = RUN_NAME or dataset.sized(data.name, SIZE)
    folder, pictures = (runs.run_folder(parent, run_name) for parent in (MODELS_DIR, IMAGES_DIR))
    where = {"RUN_NAME": run_name, "MODELS_DIR": MODELS_DIR, "IMAGES_DIR": IMAGES_DIR}
    report = script.command("generate_report.py", **where)
    with distributed.lock(folder):
        saved = None
        if RESUME == "auto" and distributed.is_first():
            networks = Generator, Discriminator
            saved = checkpoint.load_for_resume(folder, constants, MAY_CHANGE, *networks)
        saved = distributed.broadcast(saved)
        if saved and saved["epoch"] >= EPOCHS:
            print(f"{folder} is finished, after epoch {saved['epoch']}. RUN_NAME names a new run.")
            print(f"To train it longer: raise EPOCHS. To see it: {report}")
            return
        dtype = saved["settings"]["DTYPE"] if saved and DTYPE == "auto" else DTYPE
        constants["DTYPE"] = DTYPE = hardware.choose_dtype(dtype, device)
        images, labels, source, info = load_data(data)
        # A run keeps its architecture when the defaults of dcgan.py change.
        model_args = saved["model_args"] if saved else network_args(images, labels.shape[1])
        why = set_threads(images, labels, model_args, device, constants, saved)
        torch.manual_seed(SEED)
        run, progress, model = new_run(images, labels, data, info, model_args, device, constants)
        reference = fit_reference(images) if distributed.is_first() else None
        if saved:
            run = checkpoint.resume(saved, run, progress, model, folder / "checkpoint.pt")
        if distributed.is_first():
            if RESUME != "auto" and (folder.exists() or pictures.exists()):
                print(f"the run that was here is now called {runs.archive(folder, pictures)}")
            files.remove_leftovers(folder)
        log.print_summary(run, progress, model, source, folder, pictures, report, reference, why)
        images = hardware.place(images, device)
        train(images, labels.to(device), run, progress, model, folder, reference)
        for warning in log.warnings(progress.history[-1]):
            print(warning)
        print(f"{folder} is finished, after epoch {EPOCHS}. Now run: {report}")


def load_data(data):
    """Return the training images, uint8 (N, C, S, S), label vectors, source and find_info's.

    data: the dataset.DataFile that holds them, or will.
    """
    with distributed.rank0_first():  # it makes the file that the others then read
        part = {"fraction": TRAIN_FRACTION, "seed": SEED, "size": SIZE, "labels_csv": LABELS_CSV}
        images, labels, source = dataset.load(DATASET, "train", DATA_DIR, **part)
    info = dataset.find_info(data)
    labels = encode_labels(info, labels) if CONDITIONAL else labels[:, :0].float()
    if len(images) < 2:
        raise UserError(f"TRAIN_FRACTION={TRAIN_FRACTION} leaves 1 image of {source}: 2 are needed")
    if len(images) < BATCH_SIZE:
        raise UserError(
            f"BATCH_SIZE={BATCH_SIZE}: legal is at least 2 and at most {len(images)}, the "
            f"training images that TRAIN_FRACTION={TRAIN_FRACTION} leaves of {source}"
        )
    return images, labels, source, info


def set_threads(images, labels, model_args, device, constants, saved):
    """Set the threads of a CPU and constants["THREADS"]. Returns why, in words, or "" on a GPU."""
    if device.type != "cpu":
        return ""
    real = dataset.to_network(images[:BATCH_SIZE])

    throwaway = functools.cache(functools.partial(build, model_args, device))

    def trial():
        train_step(real, labels[:BATCH_SIZE], throwaway(), DTYPE)

    kept = saved["settings"].get("THREADS", 0) if saved else 0
    constants["THREADS"], why = choose_threads(THREADS, trial, kept)
    return why


def new_run(images, labels, data, info, model_args, device, constants):
    """Return a run, its progress and its model as they are before the first step.

    constants: what the checkpoints say of them.
    """
    model = build(model_args, device)
    functions = [train_step, set_learning_rate, penalty_weight]
    functions += [discriminator_loss, gradient_penalty, matching_loss]
    run = Run(
        settings=constants,
        channels=images.shape[1],
        label_counts=count_labels(labels),
        data_sha256=dataset.sha256(images, labels),
        fixed_latents=torch.randn(64, LATENT_DIM),
        model_args=model_args,
        recipe=runs.describe_recipe(model, functions),
        machine=hardware.machine(device),
        data_official=dataset.is_official(data),
        info=info,
    )
    progress = Progress(
        permutation=torch.randperm(len(images)),  # on the CPU: the same first order on any device
        running_sums=torch.zeros(len(log.STATISTICS), device=device),
    )
    return run, progress, model


def network_args(images, n_labels):
    """Return the constructor arguments of both networks of a new run, {name: {argument: value}}.

    images: the training images, uint8 (N, C, S, S).
    """
    shape, size = (images.shape[1], n_labels), images.shape[-1]
    arguments = {
        "generator": checkpoint.constructor_args(Generator, LATENT_DIM, *shape, size=size),
        "discriminator": checkpoint.constructor_args(Discriminator, *shape, size=size),
    }
    if "jpeg" in arguments["generator"]:
        arguments["generator"]["jpeg"] = jpeg.find_quality(images)
    if arguments["discriminator"].get("scales"):  # () is the plain DCGAN
        scales = texture_scales(dataset.to_network(images[:2000]))
        arguments["discriminator"]["scales"] = scales
    return arguments


def build(model_args, device):
    """Return a Model with new weights."""
    layout = {"device": device, "memory_format": torch.channels_last}
    generator = Generator(**model_args["generator"]).to(**layout)
    discriminator = Discriminator(**model_args["discriminator"]).to(**layout)
    adam = {"lr": LEARNING_RATE, "betas": (BETA1, 0.999), "fused": True, "capturable": True}
    model = Model(
        generator=generator,
        discriminator=discriminator,
        generator_ema=copy.deepcopy(generator).requires_grad_(False).eval(),
        optimizer_g=torch.optim.Adam(generator.parameters(), **adam),
        optimizer_d=torch.optim.Adam(discriminator.parameters(), **adam),
    )
    for group in model.optimizer_g.param_groups + model.optimizer_d.param_groups:
        group["initial_lr"] = float(group["lr"])
        if next(generator.parameters()).is_cuda:  # a CUDA graph would freeze a rate as a number
            group["lr"] = torch.tensor(group["initial_lr"], device=device)
    return model


@errors.short_of_memory("METRIC_IMAGES")
def fit_reference(images):
    """Return what metrics.evaluate compares with and, as "real_vs_real", what real images reach.

    None if METRIC_IMAGES is 0 or the images are too few or all alike.
    """
    halves = metrics.split_real(images, METRIC_IMAGES, SEED)
    if halves is None:
        return None
    reference = metrics.fit_reference(images, halves[0], SEED)
    return reference | {"real_vs_real": metrics.evaluate(reference, halves[1])}


def train(images, labels, run, progress, model, folder, reference):
    """The adversarial loop, from where the run stands to its last epoch.

    images: uint8 (N, C, S, S), as hardware.place returns; labels: float (N, K) on the device;
    reference: of fit_reference. SIGINT and SIGTERM end it after a checkpoint, status 130 or 143;
    SIGUSR1 asks for one. Raises UserError if a loss is not finite or a file cannot be written.
    """
    epoch_images = len(images) // BATCH_SIZE * BATCH_SIZE  # the last incomplete batch is dropped
    if progress.step == 0 and distributed.is_first():  # a full disk shows now, not after an hour
        checkpoint.save_run(run, progress, model, folder)
    plain = functools.partial(train_step, model=model, dtype=DTYPE)
    steps = {}  # by the weight of the penalty, of which a CUDA graph knows one
    for weight in {penalty_weight(0), penalty_weight(1)}:
        step = functools.partial(plain, penalty=weight)
        graph = CUDA_GRAPHS and hardware.processes() == 1
        steps[weight] = Step(step, graph) if labels.is_cuda else step
    speed = log.Speed()
    last = last_save = last_status = time.monotonic()
    sizes = {"total": EPOCHS * epoch_images, "initial": progress.step * BATCH_SIZE}
    with script.catch_signals() as caught, tqdm(**sizes, unit=" images", disable=None) as bar:
        while progress.epoch < EPOCHS:
            bar.set_description(f"epoch {progress.epoch + 1}/{EPOCHS}", refresh=False)
            while progress.images_seen < epoch_images:
                # Get a batch.
                start = progress.images_seen
                batch = distributed.local_rows(progress.permutation[start : start + BATCH_SIZE])
                pixels, own_labels = hardware.fetch(images, labels, batch)

                # Update D, G and the average of G.
                set_learning_rate(model, progress.step + 1)
                weight = penalty_weight(progress.step)
                step = steps.get(weight, functools.partial(plain, penalty=weight))
                progress.running_sums += step(dataset.to_network(pixels), own_labels)
                progress.images_seen += BATCH_SIZE
                progress.step += 1
                seen = progress.step * BATCH_SIZE
                update_ema(model.generator_ema, model.generator, seen, BATCH_SIZE, EMA_HALF_LIFE)

                # Show the status.
                now = time.monotonic()
                progress.seconds += now - last
                if warning := speed.falls(BATCH_SIZE, now - last):
                    bar.write(warning)
                last = now
                bar.update(BATCH_SIZE)
                if now - last_status > (60 if bar.disable else 1):  # seconds
                    last_status = now
                    log.show_means(bar, progress, BATCH_SIZE, EPOCHS, epoch_images)

                # Save a checkpoint.
                signals = distributed.sync_signals(caught)
                if signals.save or now - last_save > 60 * CHECKPOINT_MINUTES:
                    update_bn(model.generator_ema, run.label_counts, SEED, DTYPE)
                    if distributed.is_first():
                        checkpoint.save_run(run, progress, model, folder)
                    last, last_save, signals.save = time.monotonic(), now, False
                    progress.maintenance_seconds += last - now
                if signals.stop:
                    bar.close()
                    log.print_stopped(progress.epoch + 1, RESUME)
                    sys.exit(128 + signals.stop)

            checkpoint.check_finite(progress, model, folder)  # waits for a GPU's last step
            progress.seconds += time.monotonic() - last
            bar.write(end_epoch(len(images), run, progress, model, folder, reference))
            last = last_save = time.monotonic()


def set_learning_rate(model, step):
    """Set the rates of `build`, after LR_DECAY_START steps LR_DECAY_START / step of them.

    At constant rates D becomes too strong in long runs. Two fifths are left: with less, the
    generator learns less in them (docs/RESULTS.md, "Long runs").
    """
    for group in model.optimizer_g.param_groups + model.optimizer_d.param_groups:
        rate = group["initial_lr"] * max(0.4, min(1.0, LR_DECAY_START / step))
        group["lr"] = group["lr"].fill_(rate) if torch.is_tensor(group["lr"]) else rate


def penalty_weight(step):
    """Return the weight of gradient_penalty in a step: every 16th has it, for all 16."""
    return 0.0 if step % 16 else 16 * R1


@errors.short_of_memory("BATCH_SIZE")
def train_step(real, labels, model, dtype, penalty=0.0):
    """Update D and G by one step each. Returns log.STATISTICS as a tensor on the device.

    real: (B, C, S, S) in [-1, 1]; labels: float (B, K), theirs; K is 0 without CONDITIONAL. The
    fakes are drawn for the labels of the real images, so that labels that occur together stay
    together. penalty: weight of gradient_penalty in D's loss. D(x) and D(G(z)) are means of the
    sigmoids of all logits: they mean something only for losses that treat D's outputs as logits of
    probabilities.
    """
    generator, discriminator = model.generator, model.discriminator
    real = real.contiguous(memory_format=torch.channels_last).detach().requires_grad_(penalty > 0)
    latents = distributed.randn(len(real), LATENT_DIM, device=real.device)

    # D lowers the loss and G raises it (Goodfellow et al. 2014, equation 1), by one pass through D.
    # Where D is sure, G's gradient is small; Adam makes up for it (docs/RESULTS.md, "One pass").
    with hardware.autocast(real.device, dtype):
        fake = generator(latents, labels)
        seen = fake.detach().requires_grad_(True)
        real_logits = discriminator(real, labels).float()
        fake_logits = discriminator(seen, labels).float()
    loss = loss_d = discriminator_loss(real_logits, fake_logits)
    if penalty:
        loss = loss + penalty * gradient_penalty(real, real_logits)
    if MATCHING:  # G lowers it; the weights of D have no part in it
        loss = loss - MATCHING * matching_loss(real, seen)
    model.optimizer_d.zero_grad()
    loss.backward()
    distributed.average_gradients(discriminator)
    model.optimizer_d.step()

    model.optimizer_g.zero_grad()
    fake.backward(-seen.grad)
    distributed.average_gradients(generator)
    model.optimizer_g.step()

    d_real, d_fake = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
    statistics = torch.stack([loss_d, d_real, d_fake]).detach()
    return distributed.average_statistics(statistics, generator, discriminator)


# Half the squared gradient of D's first logit at real images (R1, Mescheder et al. 2018, section
# 4.1). The more pixels, the less one of them changes a logit; scaled to 64x64 pixels, one weight
# suits all sizes.
def gradient_penalty(real, real_logits):
    first = real_logits.reshape(len(real), -1)[:, 0]  # also of logits (N,)
    (gradient,) = torch.autograd.grad(first.sum(), real, create_graph=True)
    return ((real.shape[-1] / 64) ** 2 * gradient).square().sum((1, 2, 3)).mean() / 2


# Squared distance of the mean detail of real and synthetic images, place by place, over the power
# of detail (feature matching of Haar bands, Salimans et al. 2016, section 3.1). D sees one image at
# a time and accepts ribs and grain that are at the same place in every image. (sum_i gap_i)^2 is
# without i = j, so that its expected value is not raised by the noise of a batch's means.
def matching_loss(real, fake):
    real, fake, n, loss = real.detach(), fake.float(), len(real), 0.0
    while real.shape[-1] >= 28:  # as dcgan.texture_scales
        bands = [haar_bands(images)[:, images.shape[1] :] for images in (real, fake)]
        gap, energy = bands[0] - bands[1], bands[0].square().mean((0, 2, 3)).clamp(min=1e-6)
        pairs = (gap.sum(0).square() - gap.square().sum(0)).mean((1, 2)) / (n * max(1, n - 1))
        loss = loss + (pairs / energy).mean()
        real, fake = halve(real), halve(fake)
    return loss


# -log D(x) - log(1 - D(G(z))), D being the sigmoid of a logit (Goodfellow et al. 2014, eq. 1)
def discriminator_loss(real_logits, fake_logits):
    ones, zeros = torch.ones_like(real_logits), torch.zeros_like(fake_logits)
    loss = F.binary_cross_entropy_with_logits(real_logits, ones)
    return loss + F.binary_cross_entropy_with_logits(fake_logits, zeros)


@errors.short_of_memory("METRIC_IMAGES")
def end_epoch(n, run, progress, model, folder, reference):
    """Evaluate and write what is due after an epoch, prepare the next. Returns a status line.

    n: training images. The checkpoint is written last, so all that it says is done is on the disk.
    """
    checkpoint.check_finite(progress, model, folder)
    begin = time.monotonic()
    update_bn(model.generator_ema, run.label_counts, SEED, DTYPE)
    scores = {}
    if reference:
        drawn = run.label_counts, reference["n"], SEED, DTYPE
        scores = metrics.evaluate(reference, sampling.sample(model.generator_ema, *drawn))
    end = time.monotonic()
    progress.maintenance_seconds += end - begin
    progress.history.append(log.row(run, progress, scores))
    line = log.describe_epoch(progress.history, EPOCHS)

    progress.epoch, progress.images_seen = progress.epoch + 1, 0
    progress.seconds = progress.maintenance_seconds = 0.0
    progress.running_sums = torch.zeros_like(progress.running_sums)
    progress.permutation = torch.randperm(n)
    if distributed.is_first():
        if progress.epoch % SNAPSHOT_EPOCHS == 0 or progress.epoch == EPOCHS:
            checkpoint.save_snapshot(run, progress, model, folder)
        files.write_csv(folder / "log.csv", progress.history)
        checkpoint.save_run(run, progress, model, folder)
    progress.maintenance_seconds = time.monotonic() - end  # what was written counts in the next row
    return line


if __name__ == "__main__":
    script.run(main, globals(), memory=["BATCH_SIZE", "METRIC_IMAGES", "TRAIN_FRACTION"])
