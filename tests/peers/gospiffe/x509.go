// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// What is kept of a list of errors.
const mostErrors = 5

type watcher struct{}

func (watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	svids := []map[string]any{}
	for _, svid := range update.SVIDs {
		leaf := svid.Certificates[0]
		entry := map[string]any{
			"id": svid.ID.String(), "hint": svid.Hint, "serial": leaf.SerialNumber.Text(16),
			"authority": hex.EncodeToString(leaf.AuthorityKeyId), "not_after": leaf.NotAfter.Unix(),
		}
		if _, _, err := x509svid.Verify(svid.Certificates, update.Bundles); err != nil {
			entry["invalid"] = err.Error()
		}
		svids = append(svids, entry)
	}
	bundles := map[string][]string{}
	for _, bundle := range update.Bundles.Bundles() {
		keys := []string{}
		for _, root := range bundle.X509Authorities() {
			keys = append(keys, hex.EncodeToString(root.SubjectKeyId))
		}
		bundles[bundle.TrustDomain().Name()] = keys
	}
	say(map[string]any{"svids": svids, "bundles": bundles})
}

func (watcher) OnX509ContextWatchError(err error) {
	say(map[string]any{"watch_error": err.Error()})
}

func watch(options) error {
	return workloadapi.WatchX509Context(context.Background(), watcher{})
}

func newSource() (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return workloadapi.NewX509Source(ctx)
}

func serve(given options) error {
	who, err := authorizer(given.allow)
	if err != nil {
		return err
	}
	source, err := newSource()
	if err != nil {
		return err
	}
	listener, err := listen(source, who)
	if err != nil {
		return err
	}
	say(map[string]any{"listen": listener.Addr().String()})
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(connection, say)
	}
}

func listen(source *workloadapi.X509Source, who tlsconfig.Authorizer) (net.Listener, error) {
	mode := spiffetls.MTLSServerWithSource(who, source)
	return spiffetls.ListenWithMode(context.Background(), "tcp", "127.0.0.1:0", mode)
}

// answer repeats one line.
func answer(connection net.Conn, tell func(map[string]any)) {
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		tell(map[string]any{"refused": err.Error()})
		return
	}
	peer, err := spiffetls.PeerIDFromConn(connection)
	if err != nil {
		tell(map[string]any{"refused": err.Error()})
		return
	}
	tell(map[string]any{"peer": peer.String()})
	_, _ = io.WriteString(connection, line)
}

func dial(given options) error {
	who, err := authorizer(given.allow)
	if err != nil {
		return err
	}
	source, err := newSource()
	if err != nil {
		return err
	}
	defer source.Close()
	peer, echo, err := exchange(source, who, given.to, "hello\n")
	if err != nil {
		return err
	}
	say(map[string]any{"peer": peer, "echo": echo})
	return nil
}

func exchange(source *workloadapi.X509Source, who tlsconfig.Authorizer, to, line string) (string, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	connection, err := spiffetls.DialWithMode(ctx, "tcp", to, spiffetls.MTLSClientWithSource(who, source))
	if err != nil {
		return "", "", err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(patience))
	peer, err := spiffetls.PeerIDFromConn(connection)
	if err != nil {
		return "", "", err
	}
	if _, err := io.WriteString(connection, line); err != nil {
		return "", "", err
	}
	echo, err := bufio.NewReader(connection).ReadString('\n')
	return peer.String(), echo, err
}

// loop has a server and a client with a source each, as two workloads of one socket would.
func loop(options) error {
	server, err := newSource()
	if err != nil {
		return err
	}
	client, err := newSource()
	if err != nil {
		return err
	}
	listener, err := listen(server, tlsconfig.AuthorizeAny())
	if err != nil {
		return err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go answer(connection, func(map[string]any) {})
		}
	}()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	say(map[string]any{"looping": true})
	return count(client, listener.Addr().String(), ended)
}

func count(client *workloadapi.X509Source, to string, ended <-chan struct{}) error {
	made, failed, failures := 0, 0, []string{}
	for {
		select {
		case <-ended:
			say(map[string]any{"made": made, "failed": failed, "failures": failures})
			return nil
		case <-time.After(5 * time.Millisecond):
		}
		_, echo, err := exchange(client, tlsconfig.AuthorizeAny(), to, "hello\n")
		if err == nil && echo != "hello\n" {
			err = errors.New("another line came back")
		}
		if err == nil {
			made++
			continue
		}
		failed++
		if len(failures) < mostErrors {
			failures = append(failures, err.Error())
		}
	}
}
