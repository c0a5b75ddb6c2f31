// Kube is a Kubernetes control plane in one program, for tests: the components
// themselves, nothing of them replaced, and what tests do to them.
package main

import (
	"fmt"
	"os"
	"time"

	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

const usage = `usage: kube VERB ...
  apiserver, controller-manager, kubectl   the components, with their own flags
  etcd         one member
  compact      make etcd forget all revisions but the last
  ready        wait until an API server and its controllers do their work
  certificate  write a self-signed serving certificate
  load, churn  clusters in bulk
  toggle       change a label time and again, and say when`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	go endWithParent(os.Getppid())
	verb := os.Args[1]
	// The components read the process's own arguments.
	os.Args = append([]string{verb}, os.Args[2:]...)
	switch verb {
	case "apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "controller-manager":
		os.Exit(cli.Run(manager.NewControllerManagerCommand()))
	case "kubectl":
		os.Exit(cli.Run(kubectl.NewDefaultKubectlCommand()))
	case "etcd":
		exit(etcd())
	case "compact":
		exit(compact())
	case "ready":
		exit(ready())
	case "certificate":
		exit(certificate())
	case "load":
		exit(load())
	case "churn":
		exit(churn())
	case "toggle":
		exit(toggle())
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// endWithParent: a test that was killed can't end its servers. (The kernel's own
// PR_SET_PDEATHSIG looks at the thread that started us, which may end at once.)
func endWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(3)
}
