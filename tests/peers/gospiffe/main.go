// SPDX-License-Identifier: Apache-2.0

// gospiffe is a workload on go-spiffe: the tests drive it to see what a second implementation makes of an SVID.
//
//	gospiffe watch                        a line for each X.509 context, every SVID verified
//	gospiffe token -audience A            a JWT-SVID, fetched and parsed
//	gospiffe validate -audience A         reads a token on stdin and validates it by the JWT bundles of a JWTSource
//	gospiffe wit -domain TD               reads a WIT-SVID and, after a newline, a SPIFFE bundle, and validates the one by the other
//	gospiffe serve -allow WHO             an mTLS echo server on loopback; a line for each connection
//	gospiffe dial -to HOST:PORT -allow WHO  one mTLS connection; says what came back
//	gospiffe loop                         makes mTLS connections to itself until stdin ends, then counts them
//
// WHO is a SPIFFE ID, a list of them with commas, or `member:TRUST-DOMAIN`. Every answer is one line of JSON; the
// Workload API is at SPIFFE_ENDPOINT_SOCKET. An error is a line with `error`, and exit code 1.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const patience = 30 * time.Second

type options struct {
	audience string
	allow    string
	to       string
	spiffeID string
	domain   string
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("which command?"))
	}
	var given options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&given.audience, "audience", "", "")
	flags.StringVar(&given.allow, "allow", "", "")
	flags.StringVar(&given.to, "to", "", "")
	flags.StringVar(&given.spiffeID, "id", "", "")
	flags.StringVar(&given.domain, "domain", "", "")
	_ = flags.Parse(os.Args[2:])
	commands := map[string]func(options) error{
		"watch": watch, "token": token, "validate": validate, "wit": wit, "serve": serve, "dial": dial, "loop": loop,
	}
	command, known := commands[os.Args[1]]
	if !known {
		fail(fmt.Errorf("no command %q", os.Args[1]))
	}
	if err := command(given); err != nil {
		fail(err)
	}
}

func fail(err error) {
	say(map[string]any{"error": err.Error()})
	os.Exit(1)
}

var speaking sync.Mutex

func say(answer map[string]any) {
	speaking.Lock()
	defer speaking.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}

func authorizer(allow string) (tlsconfig.Authorizer, error) {
	if name, found := strings.CutPrefix(allow, "member:"); found {
		domain, err := spiffeid.TrustDomainFromString(name)
		return tlsconfig.AuthorizeMemberOf(domain), err
	}
	var ids []spiffeid.ID
	for _, text := range strings.Split(allow, ",") {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if len(ids) == 1 {
		return tlsconfig.AuthorizeID(ids[0]), nil
	}
	return tlsconfig.AuthorizeOneOf(ids...), nil
}

func token(given options) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	params := jwtsvid.Params{Audience: given.audience}
	if given.spiffeID != "" {
		id, err := spiffeid.FromString(given.spiffeID)
		if err != nil {
			return err
		}
		params.Subject = id
	}
	svid, err := workloadapi.FetchJWTSVID(ctx, params)
	if err != nil {
		return err
	}
	say(map[string]any{"id": svid.ID.String(), "token": svid.Marshal(), "expiry": svid.Expiry.Unix(), "hint": svid.Hint})
	return nil
}

func validate(given options) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := jwtsvid.ParseAndValidate(strings.TrimSpace(string(text)), source, []string{given.audience})
	if err != nil {
		return err
	}
	say(map[string]any{"id": svid.ID.String(), "claims": svid.Claims})
	return nil
}

func wit(given options) error {
	domain, err := spiffeid.TrustDomainFromString(given.domain)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	token, document, _ := strings.Cut(string(text), "\n")
	bundle, err := spiffebundle.Parse(domain, []byte(document))
	if err != nil {
		return err
	}
	svid, err := witsvid.ParseAndValidate(token, bundle.WITBundle())
	if err != nil {
		return err
	}
	say(map[string]any{"id": svid.ID.String(), "expiry": svid.Expiry.Unix()})
	return nil
}
