// SPDX-License-Identifier: Apache-2.0

// Package crds keeps two modules in go.mod whose resource definitions the tests install. Nothing is built from it.
package crds

import (
	_ "github.com/cilium/cilium/pkg/k8s/apis/cilium.io/client/crds/v2"
	_ "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)
