"""Is the derivative of this network right, in which mode, at what cost; and if not, which module breaks it?"""

from trigflow.tools.doctor.diagnosis import Diagnosis, Finding, ModeReport, report
from trigflow.tools.doctor.examination import diagnose

__all__ = ["Diagnosis", "Finding", "ModeReport", "diagnose", "report"]
