"""What trainings take of GPUs, before anything is rented: params.yaml -> a table. Not in the graph.

python -m stages plan [RUN …] [--params FILE] [--gpu H100] [--gpus 8] [--jobs 1] [--json]

It needs no data, no download and no GPU: steps run on tensors without data. By default it plans all runs of the study
on this machine's GPUs or, without any, on one H100. gat/study/gpus.yaml lists the GPUs; others can be added to it.
"""

import argparse
import json

import torch
from tqdm import tqdm

from gat.config import Params, ParamsError, load_params
from gat.data.latents import Latents
from gat.study.plan import DataSize, Machine, as_json, guess_data, plan_page, plan_run
from gat.study.planner import GIB, find_card, load_cards
from stages import LATENTS

IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000


def main(params: Params) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m stages plan")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs of the study, or model; by default all of `runs`")
    parser.add_argument("--params", metavar="FILE", help="in place of params.yaml, such as profiles/imagenet256.yaml")
    parser.add_argument("--gpu", choices=load_cards(), help="by default this machine's, or else H100")
    parser.add_argument("--gpus", type=int, help="how many; by default this machine's, or else 1")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, which divide the GPUs among them")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of each GPU, in place of its own")
    parser.add_argument("--images", type=int, help="in the data; by default those of data/latents, or else ImageNet's")
    parser.add_argument("--classes", type=int, help="in the data; by default the same")
    parser.add_argument("--json", action="store_true", help="print JSON, with all figures")
    asked = parser.parse_args()
    if asked.params:
        try:
            params = load_params(asked.params)
        except ParamsError as error:
            parser.error(f"{asked.params}: {error}")
    machine = machine_of(asked)
    data, guessed = data_of(params, asked)
    params.check_latent_size(data.size)
    names = asked.runs or params.runs
    names = [name for name in names if params.recipe(name).run.pretrained is None]
    plans = []
    with tqdm(names, desc="plan", unit="run", disable=None) as bar:
        for name in bar:
            plans.append(plan_run(params, name, data, machine, bar.set_postfix_str))
    if asked.json:
        print(json.dumps(as_json(params, data, plans, machine), indent=2))
        return
    each = f", {machine.gpus_each} for each training" * (machine.jobs > 1)
    what = f"{data.images:,} images of {len(data.classes):,} classes{' (assumed)' * guessed}"
    print(f"{machine.gpus} × {machine.name} of {machine.card.memory:.0f} GiB{each}; {what}\n")
    print(plan_page(params, data, plans, machine))


def machine_of(asked: argparse.Namespace) -> Machine:
    """The machine that was asked for, or this one.

    Raises:
        ParamsError: the trainings side by side do not divide the GPUs.
    """
    found = torch.cuda.device_count()
    gpus = asked.gpus or (found if found and asked.gpu is None else 1)
    name = asked.gpu or (torch.cuda.get_device_name() if found else "H100")
    card = find_card(name)
    if card is None:
        allowed = ", ".join(load_cards())
        raise ParamsError(f"--gpu: this machine's {name} is not in gat/study/gpus.yaml; allowed: {allowed}")
    if found and asked.gpu is None:
        card = card._replace(memory=torch.cuda.get_device_properties(0).total_memory / GIB)
    if asked.memory:
        card = card._replace(memory=asked.memory)
    if asked.jobs < 1 or gpus % asked.jobs:
        raise ParamsError(f"--jobs: {asked.jobs} is not allowed; allowed: divisors of {gpus} GPUs")
    return Machine(name, card, gpus, asked.jobs)


def data_of(params: Params, asked: argparse.Namespace) -> tuple[DataSize, bool]:
    """The data of data/latents or, before they are made, what was asked for; and whether ImageNet's size is assumed."""
    if LATENTS.exists() and not (asked.params or asked.images or asked.classes):
        latents = Latents(LATENTS)
        return DataSize(len(latents), latents.classes, latents.size, latents.channels), False
    guessed = not (asked.images and asked.classes)
    return guess_data(params, asked.images or IMAGENET_IMAGES, asked.classes or IMAGENET_CLASSES), guessed
