// SPDX-License-Identifier: Apache-2.0

// etcd, under its own name: Go would call the program of this module "v3".
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
