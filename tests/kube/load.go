package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	client "go.etcd.io/etcd/client/v3"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// A cluster in bulk: what it has follows from these numbers alone, so that
// churn finds what load made. Pod p has address 1 + p % 63 of block p / 63, a
// /26; block b is of node b % nodes. Address 0 of a node's first block is the
// node's tunnel address.
type bulk struct {
	kube   *kubernetes.Clientset
	calico dynamic.Interface
	group  schema.GroupVersion

	prefix                         string
	pods, namespaces, nodes, roles int
	pool, underlay                 netip.Prefix
	workers                        int
}

const podsPerBlock = 63

func bulkFlags() func() (*bulk, error) {
	b := &bulk{}
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	flag.StringVar(&b.prefix, "prefix", "load", "start of all names")
	flag.IntVar(&b.pods, "pods", 100, "pods")
	flag.IntVar(&b.namespaces, "namespaces", 1, "namespaces, PREFIX-ns-0 and so on")
	flag.IntVar(&b.nodes, "nodes", 1, "nodes, PREFIX-node-0 and so on")
	flag.IntVar(&b.roles, "roles", 10, "values of the pods' label role: role-0 and so on")
	flag.IntVar(&b.workers, "workers", 32, "requests at a time")
	pool := flag.String("pool", "10.128.0.0/14", "the pods' pool")
	underlay := flag.String("underlay", "10.200.0.0/16", "where nodes' addresses are from")
	group := flag.String("group", "crd.projectcalico.org/v1", "API group of Calico's kinds")
	return func() (*bulk, error) {
		flag.Parse()
		config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
		if err != nil {
			return nil, err
		}
		// No limit of its own.
		config.QPS = -1
		if b.calico, err = dynamic.NewForConfig(config); err != nil {
			return nil, err
		}
		config = rest.CopyConfig(config)
		config.ContentType = "application/vnd.kubernetes.protobuf"
		if b.kube, err = kubernetes.NewForConfig(config); err != nil {
			return nil, err
		}
		if b.group, err = schema.ParseGroupVersion(*group); err != nil {
			return nil, err
		}
		if b.pool, err = netip.ParsePrefix(*pool); err != nil {
			return nil, err
		}
		if b.underlay, err = netip.ParsePrefix(*underlay); err != nil {
			return nil, err
		}
		if addresses := 1 << (32 - b.pool.Bits()); b.blocks()*64 > addresses {
			return nil, fmt.Errorf("pool %s is too small for %d blocks of 64 addresses", b.pool, b.blocks())
		}
		return b, nil
	}
}

func (b *bulk) blocks() int { return max((b.pods+podsPerBlock-1)/podsPerBlock, b.nodes) }

func nth(base netip.Prefix, n int) netip.Addr {
	bytes := base.Masked().Addr().As4()
	value := uint32(bytes[0])<<24 | uint32(bytes[1])<<16 | uint32(bytes[2])<<8 | uint32(bytes[3])
	value += uint32(n)
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)})
}

func (b *bulk) node(n int) string      { return fmt.Sprintf("%s-node-%d", b.prefix, n) }
func (b *bulk) namespace(n int) string { return fmt.Sprintf("%s-ns-%d", b.prefix, n) }

// load writes the whole cluster. Pods take two requests each to make and to run,
// which is minutes for tens of thousands: they are put where the API server keeps
// them, as it would.
func load() error {
	at := flag.String("etcd", "http://127.0.0.1:2379", "where the API server keeps its objects")
	parse := bulkFlags()
	b, err := parse()
	if err != nil {
		return err
	}
	began, ctx := time.Now(), context.Background()
	if err := b.create(ctx, "ippools", b.prefix, map[string]any{
		"cidr": b.pool.String(), "vxlanMode": "Always", "ipipMode": "Never", "blockSize": int64(26),
	}); err != nil {
		return err
	}
	store, err := client.New(client.Config{Endpoints: []string{*at}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer store.Close()
	storePods := func(ctx context.Context, n int) error { return b.storePods(ctx, store, n) }
	steps := []struct {
		count int
		do    func(context.Context, int) error
	}{
		{b.namespaces, b.makeNamespace},
		{b.nodes, b.makeNode},
		{b.blocks(), b.makeBlock},
		{(b.pods + podsAtATime - 1) / podsAtATime, storePods},
	}
	for _, step := range steps {
		if err := b.each(ctx, step.count, step.do); err != nil {
			return err
		}
	}
	return report(map[string]any{
		"pods": b.pods, "namespaces": b.namespaces, "nodes": b.nodes, "blocks": b.blocks(),
		"seconds": time.Since(began).Seconds(),
	})
}

// churn takes pods away and puts them back, as many a minute as asked for, with
// another label "generation" each time.
func churn() error {
	rate := flag.Int("per-minute", 1000, "pods to replace in a minute")
	seconds := flag.Int("seconds", 10, "for how long")
	parse := bulkFlags()
	b, err := parse()
	if err != nil {
		return err
	}
	ctx, now := context.Background(), int64(0)
	began := time.Now()
	ticks := time.NewTicker(time.Minute / time.Duration(*rate))
	defer ticks.Stop()
	count := *rate * *seconds / 60
	for n := range count {
		<-ticks.C
		pod := b.pod(n % b.pods)
		pod.Labels["generation"] = fmt.Sprint(1 + n/b.pods)
		pods := b.kube.CoreV1().Pods(pod.Namespace)
		err := pods.Delete(ctx, pod.Name, meta.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !errors.IsNotFound(err) {
			return err
		}
		if err := b.putPod(ctx, pod); err != nil {
			return err
		}
	}
	return report(map[string]any{"replaced": count, "seconds": time.Since(began).Seconds()})
}

func report(what map[string]any) error { return json.NewEncoder(os.Stdout).Encode(what) }

// each does something for 0 to count, several at a time, until one fails.
func (b *bulk) each(ctx context.Context, count int, do func(context.Context, int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range b.workers {
		all.Go(func() {
			for n := int(next.Add(1)) - 1; n < count && ctx.Err() == nil; n = int(next.Add(1)) - 1 {
				if err := do(ctx, n); err != nil {
					stop(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

func ignoreExisting(err error) error {
	if errors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// create writes a cluster-scoped object of Calico.
func (b *bulk) create(ctx context.Context, plural, name string, spec map[string]any) error {
	kind := map[string]string{"ippools": "IPPool", "ipamblocks": "IPAMBlock"}[plural]
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": b.group.String(), "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec,
	}}
	_, err := b.calico.Resource(b.group.WithResource(plural)).Create(ctx, object, meta.CreateOptions{})
	return ignoreExisting(err)
}

func (b *bulk) makeNamespace(ctx context.Context, n int) error {
	namespace := core.Namespace{ObjectMeta: meta.ObjectMeta{
		Name: b.namespace(n), Labels: map[string]string{"team": fmt.Sprintf("team-%d", n%10)},
	}}
	_, err := b.kube.CoreV1().Namespaces().Create(ctx, &namespace, meta.CreateOptions{})
	return ignoreExisting(err)
}

func (b *bulk) makeNode(ctx context.Context, n int) error {
	address := nth(b.underlay, n+1)
	node := core.Node{ObjectMeta: meta.ObjectMeta{
		Name: b.node(n),
		Annotations: map[string]string{
			"projectcalico.org/IPv4Address":         fmt.Sprintf("%s/%d", address, b.underlay.Bits()),
			"projectcalico.org/IPv4VXLANTunnelAddr": nth(b.pool, 64*n).String(),
		},
	}}
	_, err := b.kube.CoreV1().Nodes().Create(ctx, &node, meta.CreateOptions{})
	return ignoreExisting(err)
}

func (b *bulk) makeBlock(ctx context.Context, n int) error {
	base, node := nth(b.pool, 64*n), b.node(n%b.nodes)
	bytes := base.As4()
	name := fmt.Sprintf("%d-%d-%d-%d-26", bytes[0], bytes[1], bytes[2], bytes[3])
	allocations := make([]any, 64)
	attributes := []any{}
	if n < b.nodes {
		allocations[0] = int64(0)
		attributes = append(attributes, map[string]any{
			"handle_id": "vxlan-tunnel-addr-" + node,
			"secondary": map[string]any{"node": node, "type": "vxlanTunnelAddress"},
		})
	}
	return b.create(ctx, "ipamblocks", name, map[string]any{
		"cidr": base.String() + "/26", "affinity": "host:" + node, "strictAffinity": false,
		"allocations": allocations, "attributes": attributes, "unallocated": []any{},
	})
}

// What etcd takes in one transaction is 128.
const podsAtATime = 100

// storePods puts the n-th so many pods into etcd.
func (b *bulk) storePods(ctx context.Context, store *client.Client, n int) error {
	encoder := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	var puts []client.Op
	for p := n * podsAtATime; p < min((n+1)*podsAtATime, b.pods); p++ {
		pod := b.pod(p)
		pod.TypeMeta = meta.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		pod.UID, pod.CreationTimestamp = uuid.NewUUID(), meta.Now()
		legacyscheme.Scheme.Default(pod)
		value, err := runtime.Encode(encoder, pod)
		if err != nil {
			return err
		}
		puts = append(puts, client.OpPut("/registry/pods/"+pod.Namespace+"/"+pod.Name, string(value)))
	}
	_, err := store.Txn(ctx).Then(puts...).Commit()
	return err
}

func (b *bulk) pod(n int) *core.Pod {
	block := n / podsPerBlock
	address := nth(b.pool, 64*block+1+n%podsPerBlock).String()
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{
			Namespace: b.namespace(n % b.namespaces),
			Name:      fmt.Sprintf("%s-%d", b.prefix, n),
			Labels:    map[string]string{"load": b.prefix, "role": fmt.Sprintf("role-%d", n%b.roles)},
		},
		Spec: core.PodSpec{
			NodeName:   b.node(block % b.nodes),
			Containers: []core.Container{{Name: "main", Image: "none", Ports: []core.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
		Status: core.PodStatus{
			Phase: core.PodRunning, PodIP: address, PodIPs: []core.PodIP{{IP: address}},
		},
	}
}

// putPod makes a pod and then says where it runs, which are two requests to
// every client.
func (b *bulk) putPod(ctx context.Context, pod *core.Pod) error {
	pods, status := b.kube.CoreV1().Pods(pod.Namespace), pod.Status
	made, err := pods.Create(ctx, pod, meta.CreateOptions{})
	if err != nil {
		return ignoreExisting(err)
	}
	made.Status = status
	_, err = pods.UpdateStatus(ctx, made, meta.UpdateOptions{})
	return err
}
