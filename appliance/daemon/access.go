package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"lunar/appliance/api"
	"lunar/appliance/cluster"
	"lunar/iscsi"
)

// The uses under which a target's secrets are sealed.
func oneWay(target, user string) string { return "chap " + target + " " + user }
func mutual(target, user string) string { return "mutual " + target + " " + user }

// access is who may log in to a target. When a secret does not open it is nobody, with the error.
func (n *Node) access(t *cluster.Target) (*iscsi.Policy, error) {
	p := &iscsi.Policy{}
	if t.Restricted {
		p.Initiators = append([]string{}, t.Allow...)
	}
	if t.CHAP == nil {
		return p, nil
	}
	var err error
	if p.CHAP, err = n.credentials(t); err != nil {
		return &iscsi.Policy{Initiators: []string{}}, err
	}
	return p, nil
}

func (n *Node) credentials(t *cluster.Target) (*iscsi.Credentials, error) {
	secret, err := n.db.Unseal(t.CHAP.Sealed, oneWay(t.Name, t.CHAP.User))
	if err != nil {
		return nil, err
	}
	c := &iscsi.Credentials{User: t.CHAP.User, Secret: []byte(secret)}
	if t.CHAP.MutualUser == "" {
		return c, nil
	}
	if secret, err = n.db.Unseal(t.CHAP.MutualSealed, mutual(t.Name, t.CHAP.MutualUser)); err != nil {
		return nil, err
	}
	c.MutualUser, c.MutualSecret = t.CHAP.MutualUser, []byte(secret)
	return c, nil
}

// everybody, in the place of an initiator's name, ends the list.
const everybody = "all"

// Allow implements server.Targets. The first initiator shuts all others out.
func (n *Node) Allow(ctx context.Context, name, initiator string) error {
	initiator = strings.ToLower(initiator)
	if initiator == everybody {
		return n.changeAccess(ctx, name, "target.allow", "every initiator may log in", func(t *cluster.Target) error {
			t.Allow, t.Restricted = nil, false
			return nil
		})
	}
	if err := iscsi.ValidName(initiator); err != nil {
		return refusal(err)
	}
	return n.changeAccess(ctx, name, "target.allow", initiator+" may log in", func(t *cluster.Target) error {
		t.Restricted = true
		if i, found := slices.BinarySearch(t.Allow, initiator); !found {
			t.Allow = slices.Insert(t.Allow, i, initiator)
		}
		return nil
	})
}

// Disallow implements server.Targets. Without the last one nobody may log in.
func (n *Node) Disallow(ctx context.Context, name, initiator string) error {
	initiator = strings.ToLower(initiator)
	return n.changeAccess(ctx, name, "target.disallow", initiator+" is off the list", func(t *cluster.Target) error {
		i, found := slices.BinarySearch(t.Allow, initiator)
		if !found {
			return api.Errorf(api.NotFound, "%s is not on the list of target %s", initiator, t.Name)
		}
		t.Allow = slices.Delete(t.Allow, i, i+1)
		return nil
	})
}

// SetCHAP implements server.Targets.
func (n *Node) SetCHAP(ctx context.Context, name string, r api.SetCHAP) error {
	if err := checkCHAP(r); err != nil {
		return err
	}
	what := "CHAP was set for user " + r.User
	if r.Remove {
		what = "CHAP was removed"
	}
	return n.changeAccess(ctx, name, "target.chap", what, func(t *cluster.Target) error {
		switch {
		case r.Remove && r.Mutual && t.CHAP != nil:
			t.CHAP.MutualUser, t.CHAP.MutualSealed = "", nil
		case r.Remove:
			t.CHAP = nil
		case r.Mutual && t.CHAP == nil:
			return api.Errorf(api.Refused, "target %s has no CHAP yet", t.Name).WithHint("set the initiator's secret first, without --mutual")
		case r.Mutual:
			t.CHAP.MutualUser, t.CHAP.MutualSealed = r.User, n.db.Seal(cluster.Secret(r.Secret), mutual(t.Name, r.User))
		case t.CHAP == nil:
			t.CHAP = &cluster.CHAP{User: r.User, Sealed: n.db.Seal(cluster.Secret(r.Secret), oneWay(t.Name, r.User))}
		default:
			t.CHAP.User, t.CHAP.Sealed = r.User, n.db.Seal(cluster.Secret(r.Secret), oneWay(t.Name, r.User))
		}
		return n.differ(t)
	})
}

// maxCHAP is the length that CHAP_N and a secret may have, RFC 7143 §12.1.
const maxCHAP = 255

func checkCHAP(r api.SetCHAP) error {
	switch {
	case r.Remove:
		return nil
	case r.User == "" || len(r.User) > maxCHAP:
		return api.Errorf(api.Invalid, "a CHAP user name has 1 to %d bytes", maxCHAP)
	case len(r.Secret) < iscsi.MinSecret || len(r.Secret) > maxCHAP:
		return api.Errorf(api.Invalid, "the CHAP secret has %d bytes", len(r.Secret)).
			WithHint("give one of %d to %d bytes (some initiators take 16 at most)", iscsi.MinSecret, maxCHAP)
	}
	return nil
}

// differ refuses one secret for both directions, as RFC 7143 §9.2.1 wants.
func (n *Node) differ(t *cluster.Target) error {
	if t.CHAP == nil || t.CHAP.MutualUser == "" {
		return nil
	}
	c, err := n.credentials(t)
	if err == nil && bytes.Equal(c.Secret, c.MutualSecret) {
		return api.Errorf(api.Invalid, "the initiator's and the target's secret are the same").WithHint("give two different secrets")
	}
	return nil
}

// changeAccess changes a target's access rules in the database and then in the server.
func (n *Node) changeAccess(ctx context.Context, name, kind, what string, change func(*cluster.Target) error) error {
	end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	t, err := n.target(name)
	if err != nil {
		return err
	}
	record, err := n.db.UpdateTarget(ctx, t.name, change)
	if err != nil {
		return refusal(err)
	}
	policy, accessErr := n.access(&record)
	n.directory.admit(t.name, policy)
	if err := n.front.SetAccess(t.name, policy); err != nil {
		return refusal(errors.Join(accessErr, err))
	}
	n.mu.Lock()
	t.record = record
	if t.reason = ""; accessErr != nil {
		t.reason = accessErr.Error()
	}
	n.mu.Unlock()
	n.note(ctx, cluster.Event{Kind: kind, Target: t.name, Text: fmt.Sprintf("target %s: %s", t.name, what)})
	return nil
}
