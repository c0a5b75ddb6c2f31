package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"time"

	client "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcd runs one member until it is killed.
func etcd() error {
	dir := flag.String("dir", "", "data directory")
	at := flag.String("client", "", "client URL, such as http://127.0.0.1:2379")
	peer := flag.String("peer", "", "peer URL")
	flag.Parse()
	clientURL, err := url.Parse(*at)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(*peer)
	if err != nil {
		return err
	}
	config := embed.NewConfig()
	config.Dir = *dir
	config.LogLevel = "warn"
	config.ListenClientUrls = []url.URL{*clientURL}
	config.AdvertiseClientUrls = []url.URL{*clientURL}
	config.ListenPeerUrls = []url.URL{*peerURL}
	config.AdvertisePeerUrls = []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// Data outlives the process, not the machine: enough for tests, and much faster.
	config.UnsafeNoFsync = true
	// 50,000 pods and their history are more than the default of 2 GiB at worst.
	config.QuotaBackendBytes = 8 << 30
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	<-server.Server.ReadyNotify()
	return <-server.Err()
}

// compact forgets every revision before the present one, so that a watch that resumes gets "410 Gone".
func compact() error {
	at := flag.String("client", "", "client URL")
	flag.Parse()
	store, err := client.New(client.Config{Endpoints: []string{*at}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	now, err := store.Get(ctx, "none")
	if err != nil {
		return err
	}
	if _, err := store.Compact(ctx, now.Header.Revision, client.WithCompactPhysical()); err != nil {
		return err
	}
	fmt.Println(now.Header.Revision)
	return nil
}
