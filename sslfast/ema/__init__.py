"""EMA teachers: copies of networks that follow them as exponential moving averages."""

from .schedules import CosineMomentum, PowerMomentum, WarmupMomentum
from .teacher import EMATeacher

__all__ = ["CosineMomentum", "EMATeacher", "PowerMomentum", "WarmupMomentum"]
