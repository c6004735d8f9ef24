"""Single-stream models example by example, in plain tensor operations: what tests compare with."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from crossloom.training.recipe import load_recipe
from crossloom.training.run import make_model, make_stack


def set_up(name, world, examples=6, seed=0, **changes):
    """A small recipe's model, of weights that are nowhere zero, and its micro-batches."""
    recipe = load_recipe(name)
    recipe = replace(recipe, data=str(world), examples=examples, workers=0, seed=seed, **changes)
    located = recipe.located()
    torch.manual_seed(1)
    model = make_model(located)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), make_stack(located)


def drawn(stack, component, count=1, before=60):
    """The first micro-batches of a component."""
    found = []
    for number in range(before):
        if stack.mixture.at(number)[0] == component:
            found.append(stack.micro(number).to("cpu"))
        if len(found) == count:
            return found
    raise AssertionError(f"{component} is drawn less than {count} times in {before}")


def part(stream, example):
    """Flat numbers of an example's units."""
    first = int(stream.start[example])
    return torch.arange(first, first + int(stream.length[example]))


def norm(x, like):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + like.eps).sqrt() * like.weight + like.bias


def linear(x, like):
    return x @ like.weight.T + like.bias


def layers(model, x, causal=False):
    """BERT's layers (post-norm) over the units of one example, ``[N, width]``."""
    heads = model.plan.heads
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1) & causal
    for layer in model.fusion.layers:
        attend, feed = layer.blocks
        names = list(attend.query)  # one set of weights, whatever it is called
        assert len(names) == 1
        (name,) = names
        query = linear(x, attend.query[name]).unflatten(1, (heads, -1)).transpose(0, 1)
        key, value = (
            y.unflatten(1, (heads, -1)).transpose(0, 1)
            for y in linear(x, attend.keyvalue[name]).chunk(2, dim=1)
        )
        score = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        weight = score.masked_fill(later, -torch.inf).softmax(-1)
        read = (weight @ value).transpose(0, 1).flatten(1)
        x = norm(x + linear(read, attend.output[name]), attend.norm[name])
        inner = F.gelu(linear(x, feed.up[name]))
        x = norm(x + linear(inner, feed.down[name]), feed.norm[name])
    return x


def logits(x, head, matrix, transform=None):
    """Linear, GELU, norm, decoder: BERT's head."""
    first, _, last = transform or head.transform
    return norm(F.gelu(linear(x, first)), last) @ matrix.T + head.bias


def cross_entropy(out, target):
    """Mean over slots of -log of the softmax at the target."""
    return -out.log_softmax(1)[torch.arange(len(out)), target].mean()


def mean_losses(model, batch):
    """By objective that is drawn, what the model says: the sum over slots by their number."""
    out = model(batch)
    return {n: out[n]["loss"] / count for n, count in batch.counts.items() if count}


def assert_every_parameter_learns(model, stack, components):
    for component in components:
        (batch,) = drawn(stack, component)
        model.zero_grad()
        sum(x["loss"] for x in model(batch).values()).backward()
        lacking = [n for n, p in model.named_parameters() if p.grad is None]
        assert not lacking, (component, lacking)


def bert(vocabulary, width, count, segments=2):
    """Parameters of BERT's embeddings and layers, without its pooler."""
    embeddings = (vocabulary + 512 + segments + 2) * width
    return embeddings + count * (12 * width * width + 13 * width)


def transform(width):
    """Parameters of linear, GELU, norm."""
    return width * width + 3 * width
