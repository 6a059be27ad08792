package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"lunar/appliance/e2e/lab"
)

// TestCHAP logs in with no, wrong and right secrets, one-way and mutual, by libiscsi.
func TestCHAP(t *testing.T) {
	const secret, targetSecret = "initiator-secret", "target-secret-1"
	ctx, s := serve(t, 1024*mib, 64*mib)
	setSecret(ctx, t, s, secret, "target", "chap", iqn, "--user", "alice")
	setSecret(ctx, t, s, targetSecret, "target", "chap", iqn, "--user", "lunar", "--mutual")

	mutual := "?target_user=lunar&target_password="
	for _, c := range []struct {
		name, credentials, query string
		ok                       bool
	}{
		{"none", "", "", false},
		{"right", "alice%" + secret + "@", "", true},
		{"wrong secret", "alice%wrong-secret-123@", "", false},
		{"wrong user", "mallory%" + secret + "@", "", false},
		{"mutual", "alice%" + secret + "@", mutual + targetSecret, true},
		{"mutual, target's secret wrong", "alice%" + secret + "@", mutual + "something-else-1", false},
	} {
		url := strings.Replace(s.url, "iscsi://", "iscsi://"+c.credentials, 1) + c.query
		if _, err := lab.Run(ctx, "iscsi-inq", url); (err == nil) != c.ok {
			t.Errorf("%s: error %v, want success: %v", c.name, err, c.ok)
		}
	}
}

func setSecret(ctx context.Context, t *testing.T, s *served, secret string, args ...string) {
	t.Helper()
	if _, err := s.node.CtlInput(ctx, secret+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

// TestAllowList lets one initiator in by name and shows the target to no other.
func TestAllowList(t *testing.T) {
	const friend, stranger = "iqn.2026-01.lunar.test:friend", "iqn.2026-01.lunar.test:stranger"
	ctx, s := serve(t, 1024*mib, 64*mib)
	ctl(ctx, t, s.node, "target allow "+iqn+" "+friend)
	portal := fmt.Sprintf("iscsi://127.0.0.1:%d", s.node.Ports[0])
	for _, c := range []struct {
		name string
		ok   bool
	}{{friend, true}, {stranger, false}} {
		if _, err := lab.Run(ctx, "iscsi-inq", "-i", c.name, s.url); (err == nil) != c.ok {
			t.Errorf("login as %s: error %v, want success: %v", c.name, err, c.ok)
		}
		list, err := lab.Run(ctx, "iscsi-ls", "-i", c.name, portal)
		check(t, err)
		if strings.Contains(list, iqn) != c.ok {
			t.Errorf("discovery as %s: %q, want the target in it: %v", c.name, list, c.ok)
		}
	}
}
