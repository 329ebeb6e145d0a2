"""Optimizers: AdamW, and Muon for the matrices of hidden layers with AdamW for everything else."""

import torch


def build_optimizer(name: str, groups: list[dict], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Build `training.optimizer` ("adamw" or "muon") for the groups of `parameter_groups`."""
    if name == "muon":
        return MuonWithAdamW(groups, betas)
    return torch.optim.AdamW(groups, betas=betas, fused=True)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer that updates weight matrices of hidden layers (`...layers.<i>...weight`) by Muon and all other
    parameters by AdamW.

    Muon replaces the momentum of a matrix by the nearest orthogonal matrix (K. Jordan, 2024). Its updates are scaled to
    the size of AdamW's (arXiv 2502.16982), so one learning rate and one weight decay serve both.

    Args:
        groups: as `parameter_groups` makes them, with the `names` of the parameters.
        betas: of AdamW. Muon uses Nesterov momentum of 0.95.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float]):
        self.muon = torch.optim.Muon(_of_kind(groups, True), adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(_of_kind(groups, False), betas=betas, fused=True)
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})

    def step(self, closure=None):
        count = len(self.muon.param_groups)
        # Linked in every step, because loading a state dict replaces both objects.
        for part, groups in ((self.muon, self.param_groups[:count]), (self.adamw, self.param_groups[count:])):
            part.param_groups, part.state = groups, self.state
            part.step()


def _of_kind(groups: list[dict], hidden: bool) -> list[dict]:
    """The groups with the weight matrices of hidden layers alone, or with all other parameters alone."""
    found = []
    for group in groups:
        pairs = zip(group["names"], group["params"], strict=True)
        of_kind = {name: each for name, each in pairs if (".layers." in name and each.ndim == 2) == hidden}
        if of_kind:
            found.append(group | {"names": list(of_kind), "params": list(of_kind.values())})
    return found
