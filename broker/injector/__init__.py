# SPDX-License-Identifier: Apache-2.0
"""The injector: a pod in, the same pod with its sidecar out, as a JSON patch; and the admission webhook that serves it.

Pure but for `webhook`: `wishes` reads what a pod asks for by its annotations, `demands` says what its namespace leaves
to it, `probes` rewrites a kubelet's probes, `containers` writes what is added, `pod` puts it together, `json_patch`
says how the two differ, `review` is an AdmissionReview in and out. `policy`, `guards` and their `sentences` say the
same in CEL (`cel`), for API servers that do without us.
"""

from firedoor.broker.injector.exclusions import InjectionRefused
from firedoor.broker.injector.json_patch import difference
from firedoor.broker.injector.pod import Injected, inject
from firedoor.broker.injector.review import MAX_REVIEW, answer
from firedoor.broker.injector.settings import InjectorRules

__all__ = ["MAX_REVIEW", "Injected", "InjectionRefused", "InjectorRules", "answer", "difference", "inject"]
