"""Adam and momentum as somebody would write them, each with one or two known differences planted on purpose."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
SCHEDULE = 0.02 / (1 + 0.3 * np.arange(64)) ** 0.7


@dataclass
class Adam:
    """`(params, grads, step) -> params` on one array; knows nothing of the library's own rules."""

    lr: float = 1e-2
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_place: str = "out"
    correct: tuple[bool, bool] = (True, True)
    start: float = 0.0
    first_t: int = 1
    amsgrad: str = ""
    l2: float = 0.0
    decay: float = 0.0
    decay_last: bool = False
    nesterov: str = ""
    dtype: str = ""
    both: bool = False
    schedule: bool = False
    schedule_ahead: int = 0
    lr_inside: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def keep(self, x: np.ndarray, second: bool = False) -> np.ndarray:
        if not self.dtype or (second and not self.both):
            return x
        return x.astype(DTYPES[self.dtype]).astype(x.dtype)

    def __call__(self, params: Any, grads: Any, step: int) -> np.ndarray:
        w, g = np.asarray(params), np.asarray(grads)
        memory, t = self.memory, step + self.first_t
        lr = SCHEDULE[step + self.schedule_ahead] if self.schedule else self.lr
        if step == 0:
            memory.update(m=np.zeros_like(w), v=np.full_like(w, self.start), top=np.zeros_like(w))
        g = g + self.l2 * w
        memory["m"] = m = self.keep(self.b1 * memory["m"] + (1 - self.b1) * (lr * g if self.lr_inside else g))
        memory["v"] = v = self.keep(self.b2 * memory["v"] + (1 - self.b2) * g**2, second=True)
        c1 = 1 - self.b1**t if self.correct[0] else 1.0
        c2 = 1 - self.b2**t if self.correct[1] else 1.0
        if self.amsgrad == "raw":
            memory["top"] = v = np.maximum(memory["top"], v)
        v_hat = v / c2
        if self.amsgrad == "corrected":
            memory["top"] = v_hat = np.maximum(memory["top"], v_hat)
        m_hat = m / c1
        if self.nesterov == "Dozat":
            m_hat = self.b1 * m / (1 - self.b1 ** (t + 1)) + (1 - self.b1) * g / c1
        if self.nesterov == "same":
            m_hat = (self.b1 * m + (1 - self.b1) * g) / c1
        if self.eps_place == "out":
            u = m_hat / (np.sqrt(v_hat) + self.eps)
        elif self.eps_place == "in":
            u = m_hat / np.sqrt(v_hat + self.eps)
        else:
            u = m_hat * np.sqrt(c2) / (np.sqrt(v) + self.eps)
        u = u if self.lr_inside else lr * u
        if self.decay_last:
            w = w - u
            return w - lr * self.decay * w
        return w - u - lr * self.decay * w


@dataclass
class Momentum:
    """The same for SGD with momentum."""

    lr: float = 1e-2
    rho: float = 0.9
    dampening: float = 0.0
    damp_first: bool = False
    nesterov: bool = False
    l2: float = 0.0
    decay: float = 0.0
    dtype: str = ""
    schedule: bool = False
    schedule_ahead: int = 0
    lr_inside: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, grads: Any, step: int) -> np.ndarray:
        w, g = np.asarray(params), np.asarray(grads)
        lr = SCHEDULE[step + self.schedule_ahead] if self.schedule else self.lr
        g = g + self.l2 * w
        old = np.zeros_like(w) if step == 0 else self.memory["v"]
        gain = 1.0 if step == 0 and not self.damp_first else 1 - self.dampening
        enters = lr * g if self.lr_inside else g
        v = self.rho * old + gain * enters
        if self.dtype:
            v = v.astype(DTYPES[self.dtype]).astype(v.dtype)
        self.memory["v"] = v
        u = enters + self.rho * v if self.nesterov else v
        return w - (u if self.lr_inside else lr * u) - lr * self.decay * w


Planted = tuple[Callable[..., Any], dict[str, Any], dict[str, Any], set[str]]
SCHEDULED = {"schedule": True}


def adam(groups: str, common: dict[str, Any] | None = None, **changed: Any) -> Planted:
    return Adam, common or {}, changed, set(groups.split(" + "))


def momentum(groups: str, common: dict[str, Any] | None = None, **changed: Any) -> Planted:
    return Momentum, common or {}, changed, set(groups.split(" + "))


EPS, START, BIAS, DECAY = "epsilon", "initial accumulator", "bias correction", "weight decay"
FORM, DTYPE, PLACE, COUNT, DAMP = "Nesterov's form", "moment dtype", "learning rate's place", "step count", "dampening"
RATE, AMS, MOMENTUM, SECOND = "learning rate", "AMSGrad", "momentum", "second moment"

SINGLES = [
    adam(EPS, eps=1e-7),
    adam(EPS, eps=1e-6),
    adam(EPS, eps=1e-10),
    adam(EPS, eps=1e-3),
    adam(EPS, eps_place="in"),
    adam(EPS, eps_place="hat"),
    adam(EPS, {"eps": 1e-7}, eps_place="hat"),
    adam(EPS, eps=1e-14, eps_place="in"),
    adam(BIAS, correct=(False, False)),
    adam(BIAS, correct=(True, False)),
    adam(BIAS, correct=(False, True)),
    adam(START, start=0.1),
    adam(START, start=1e-3),
    adam(START, start=1.0),
    adam(START, {"eps_place": "in"}, start=0.1),
    adam(COUNT, first_t=2),
    adam(COUNT, SCHEDULED, schedule_ahead=1),
    adam(AMS, amsgrad="raw"),
    adam(AMS, amsgrad="corrected"),
    adam(AMS, {"amsgrad": "raw"}, amsgrad="corrected"),
    adam(DECAY, l2=1e-2),
    adam(DECAY, l2=1e-4),
    adam(DECAY, decay=1e-2),
    adam(DECAY, decay=1e-4),
    adam(DECAY, {"decay": 1e-2}, decay=1e-4),
    adam(DECAY, {"l2": 1e-2}, l2=0.0, decay=1e-2),
    adam(DECAY, {"decay": 1e-2}, decay_last=True),
    adam(FORM, nesterov="Dozat"),
    adam(FORM, nesterov="same"),
    adam(FORM, {"nesterov": "Dozat"}, nesterov="same"),
    adam(DTYPE, dtype="bfloat16"),
    adam(DTYPE, dtype="float32"),
    adam(DTYPE, dtype="bfloat16", both=True),
    adam(DTYPE, dtype="float32", both=True),
    adam(PLACE, SCHEDULED, lr_inside=True),
    adam(RATE, lr=2e-2),
    adam(MOMENTUM, b1=0.95),
    adam(SECOND, b2=0.99),
    adam(SECOND, b2=0.9999),
    adam(BIAS, SCHEDULED, correct=(False, False)),
    momentum(DAMP, dampening=0.1),
    momentum(DAMP, dampening=0.5),
    momentum(DAMP, {"nesterov": True}, dampening=0.1, damp_first=True),
    momentum(DAMP, {"dampening": 0.1}, damp_first=True),
    momentum(FORM, nesterov=True),
    momentum(PLACE, SCHEDULED, lr_inside=True),
    momentum(PLACE, {**SCHEDULED, "nesterov": True}, lr_inside=True),
    momentum(COUNT, SCHEDULED, schedule_ahead=1),
    momentum(DECAY, l2=1e-2),
    momentum(DECAY, decay=1e-2),
    momentum(DECAY, {"l2": 1e-2}, l2=0.0, decay=1e-2),
    momentum(DTYPE, dtype="bfloat16"),
    momentum(DTYPE, dtype="float32"),
    momentum(RATE, lr=3e-2),
    momentum(MOMENTUM, rho=0.99),
]
PAIRS = [
    adam(f"{EPS} + {BIAS}", eps=1e-6, correct=(False, False)),
    adam(f"{EPS} + {START}", eps=1e-7, start=0.1),
    adam(f"{EPS} + {START}", eps_place="in", start=0.1),
    adam(f"{EPS} + {DECAY}", eps=1e-7, decay=1e-2),
    adam(f"{EPS} + {DECAY}", eps_place="hat", l2=1e-3),
    adam(f"{EPS} + {AMS}", eps=1e-7, amsgrad="raw"),
    adam(f"{EPS} + {FORM}", eps=1e-7, nesterov="Dozat"),
    adam(f"{EPS} + {COUNT}", eps=1e-7, first_t=2),
    adam(f"{BIAS} + {DECAY}", correct=(False, False), decay=1e-2),
    adam(f"{BIAS} + {START}", correct=(True, False), start=0.1),
    adam(f"{BIAS} + {FORM}", correct=(False, True), nesterov="same"),
    adam(f"{START} + {AMS}", start=0.1, amsgrad="raw"),
    adam(f"{DECAY} + {FORM}", l2=1e-2, nesterov="Dozat"),
    adam(f"{RATE} + {EPS}", lr=1e-3, eps=1e-7),
    adam(f"{SECOND} + {DECAY}", b2=0.99, decay=1e-2),
    adam(f"{DTYPE} + {EPS}", dtype="float32", eps_place="in"),
    adam(f"{DTYPE} + {BIAS}", dtype="bfloat16", correct=(False, False)),
    momentum(f"{DAMP} + {FORM}", dampening=0.1, nesterov=True),
    momentum(f"{DAMP} + {DECAY}", dampening=0.1, l2=1e-2),
    momentum(f"{FORM} + {DECAY}", nesterov=True, decay=1e-2),
    momentum(f"{PLACE} + {FORM}", SCHEDULED, lr_inside=True, nesterov=True),
    momentum(f"{PLACE} + {DECAY}", SCHEDULED, lr_inside=True, decay=1e-2),
]
