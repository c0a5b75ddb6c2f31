package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// One change of a label, in nanoseconds of Unix time: when the request was sent,
// when it was answered, and when a watch of this process told of it.
type toggled struct {
	Value    string `json:"value"`
	Sent     int64  `json:"sent"`
	Answered int64  `json:"answered"`
	Seen     int64  `json:"seen"`
}

// toggle gives a label of a pod one value after another, time and again.
func toggle() error {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	namespace := flag.String("namespace", "default", "the pod's namespace")
	name := flag.String("name", "", "the pod's name")
	key := flag.String("key", "role", "the label's key")
	values := flag.String("values", "closed,open", "its values, in turn")
	times := flag.Int("times", 20, "how many changes")
	pause := flag.Duration("pause", 250*time.Millisecond, "from one change to the next")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, pods := context.Background(), client.CoreV1().Pods(*namespace)
	only := meta.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", *name).String()}
	watching, err := pods.Watch(ctx, only)
	if err != nil {
		return err
	}
	defer watching.Stop()
	arrivals := make(chan arrival, 100)
	go arrive(watching, *key, arrivals)
	var all []toggled
	turn := strings.Split(*values, ",")
	for n := range *times {
		time.Sleep(*pause)
		change := toggled{Value: turn[n%len(turn)], Sent: time.Now().UnixNano()}
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, *key, change.Value)
		if _, err := pods.Patch(ctx, *name, types.StrategicMergePatchType, []byte(patch), meta.PatchOptions{}); err != nil {
			return err
		}
		change.Answered = time.Now().UnixNano()
		if change.Seen, err = seen(arrivals, change.Value); err != nil {
			return err
		}
		all = append(all, change)
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

// arrival is when a watch told of a value.
type arrival struct {
	value string
	at    int64
}

func arrive(watching watch.Interface, key string, arrivals chan<- arrival) {
	for event := range watching.ResultChan() {
		if pod, is := event.Object.(*core.Pod); is {
			arrivals <- arrival{pod.Labels[key], time.Now().UnixNano()}
		}
	}
	close(arrivals)
}

// seen waits until the watch has told of a value.
func seen(arrivals <-chan arrival, value string) (int64, error) {
	deadline := time.After(10 * time.Second)
	for {
		select {
		case arrival, open := <-arrivals:
			if !open {
				return 0, fmt.Errorf("the watch has ended")
			}
			if arrival.value == value {
				return arrival.at, nil
			}
		case <-deadline:
			return 0, fmt.Errorf("the watch does not tell of the value %s", value)
		}
	}
}
