# SPDX-License-Identifier: Apache-2.0
"""What a broker has to do with clusters.

They are asked by `firedoor.cluster`; `rights` says what our account may not, `lease` which of several brokers writes.
`pod_attestors` and `pod_facts` attest pods and nodes' agents; `policy_resources` and `policy_status` are the policy as
custom resources; `controllers` runs what keeps objects as they should be, `configured` puts them together.
`registration` makes entries: those that `registrar` finds `rules` to ask for.
`bundle_maps` and `cluster_bundle` bring the trust bundle to pods; `pod_certificates` signs what kubelets ask for.
`directory` derives services from what `endpoint_records` keeps of a cluster's objects, by `endpoint_index`.
"""
