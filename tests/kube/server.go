package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
)

// ready waits for the API server, and if asked to, for the controllers' work: the
// service account of a namespace, without which pods are refused.
func ready() error {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	within := flag.Duration("within", time.Minute, "how long to wait")
	controllers := flag.Bool("controllers", false, "wait for their work as well")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.Timeout = 2 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *within)
	defer cancel()
	look := func() error {
		if err := client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil || !*controllers {
			return err
		}
		_, err := client.CoreV1().ServiceAccounts(core.NamespaceDefault).Get(ctx, "default", meta.GetOptions{})
		return err
	}
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %s: %w", config.Host, *within, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// certificate writes apiserver.crt and apiserver.key as the API server makes
// them for itself. The file of the certificate is replaced last and at once: a
// running server takes both over when it sees it.
func certificate() error {
	dir := flag.String("dir", "", "the API server's --cert-dir")
	address := flag.String("address", "", "the address that clients use")
	flag.Parse()
	chain, key, err := cert.GenerateSelfSignedCertKey(*address, []net.IP{net.ParseIP(*address)}, nil)
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name    string
		content []byte
	}{{"apiserver.key", key}, {"apiserver.crt", chain}} {
		path := filepath.Join(*dir, file.name)
		if err := os.WriteFile(path+".new", file.content, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}
