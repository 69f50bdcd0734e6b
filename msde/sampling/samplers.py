import math

import torch


def denoise(score, sde, x, t):
    a, s = sde.marginal_prob(torch.ones(1), t.view(1))
    return (x + s.square() * score(x, t)) / a


def karras_times(sde, steps, rho=7.0, first=None, last=0.03):
    # VE only stub
    first = first or sde.sigma_max
    k = torch.linspace(0, 1, steps)
    sig = (first ** (1 / rho) + k * (last ** (1 / rho) - first ** (1 / rho))) ** rho
    return torch.log(sig / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)


def sig(sde, t):
    return sde.marginal_prob(torch.ones(1), t.view(1))[1]


def dpm_solver(score, sde, x, times, noise=None, batch=None):
    old = None
    for k in range(len(times) - 1):
        t, u = times[k], times[k + 1]
        st, su = sig(sde, t), sig(sde, u)
        d = denoise(score, sde, x, t)
        h = torch.log(st / su)
        if old is None:
            dd = d
        else:
            r = hold / h
            dd = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        x = (su / st) * x - (torch.exp(-h) - 1) * dd
        old, hold = d, h
    return x


def heun(score, sde, x, times, noise=None, batch=None):
    for k in range(len(times) - 1):
        t, u = times[k], times[k + 1]
        st, su = sig(sde, t), sig(sde, u)
        d = -st * score(x, t)
        y = x + (su - st) * d
        e = -su * score(y, u)
        x = x + (su - st) * (d + e) / 2
    return x


def stochastic_heun(score, sde, x, times, noise=None, batch=None, churn=40, s_noise=1.0):
    n = len(times) - 1
    for k in range(n):
        t, u = times[k], times[k + 1]
        st, su = sig(sde, t), sig(sde, u)
        g = min(churn / n, math.sqrt(2) - 1)
        sh = torch.clamp(st * (1 + g), max=sde.sigma_max)
        th = torch.log(sh / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)
        x = x + (sh**2 - st**2).clamp(min=0).sqrt() * s_noise * noise(k)
        d = -sh * score(x, th.view(()))
        y = x + (su - sh) * d
        e = -su * score(y, u)
        x = x + (su - sh) * (d + e) / 2
    return x


SAMPLERS = dict(dpm_solver=dpm_solver, heun=heun, stochastic_heun=stochastic_heun)
