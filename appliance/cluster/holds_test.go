package cluster

import (
	"testing"
	"time"
)

// eventuallySees waits until what a node sees of a volume's holds is as wanted.
func eventuallySees(t *testing.T, c *Coordinators, volume, reason string, there bool) Hold {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		view, err := c.View(t.Context())
		must(t, err)
		if h, ok := view.Holds[volume][reason]; ok == there {
			return h
		}
		if time.Now().After(until) {
			t.Fatalf("%+v", view.Holds)
		}
	}
}

// A hold is seen by every node, is one for each reason, and ends by its release.
func TestHoldIsSeenAndReleased(t *testing.T) {
	db, ctx := startMembers(t, 1)[0].DB, t.Context()
	volume := addVolumes(t, db, 1)[0]
	s1, _ := startSession(t, db, time.Second)
	db2 := asNode(db, "n2")
	s2, _ := startSession(t, db2, time.Second)
	c1, c2 := db.Coordinators(s1), db2.Coordinators(s2)

	_, err := c1.Hold(ctx, "none", Hold{Reason: "Maintenance"})
	wantErr(t, err, ErrNotFound)
	one, err := c1.Hold(ctx, volume, Hold{Reason: "Maintenance", Redirect: true, Operation: "repair"})
	must(t, err)
	seen := eventuallySees(t, c2, volume, "Maintenance", true)
	if !seen.Redirect || seen.Node != db.node || seen.Operation != "repair" || seen.Incarnation != s1.Incarnation() {
		t.Fatalf("%+v", seen)
	}
	must(t, one.take(ctx)) // as after a reply that was lost
	_, err = c2.Hold(ctx, volume, Hold{Reason: "Maintenance"})
	wantErr(t, err, ErrInUse)
	other, err := c2.Hold(ctx, volume, Hold{Reason: "Backup"})
	must(t, err)
	must(t, one.Release(ctx))
	must(t, one.Release(ctx))
	later, err := c2.Hold(ctx, volume, Hold{Reason: "Maintenance"})
	must(t, err)
	must(t, one.Release(ctx)) // is not the later one's
	eventuallySees(t, c1, volume, "Maintenance", true)
	must(t, later.Release(ctx))
	must(t, c2.EndHold(ctx, volume, eventuallySees(t, c2, volume, "Backup", true)))
	eventuallySees(t, c1, volume, "Backup", false)
	must(t, other.Release(ctx))
}

// A hold ends with its owner: it is nobody's errand to take it away.
func TestHoldEndsWithItsOwner(t *testing.T) {
	db, ctx := startMembers(t, 1)[0].DB, t.Context()
	volume := addVolumes(t, db, 1)[0]
	s1, _ := startSession(t, db, time.Second)
	db2 := asNode(db, "n2")
	s2, _ := startSession(t, db2, time.Second)
	c1, c2 := db.Coordinators(s1), db2.Coordinators(s2)
	held, err := c2.Hold(ctx, volume, Hold{Reason: "Maintenance", Redirect: true})
	must(t, err)
	eventuallySees(t, c1, volume, "Maintenance", true)
	_, err = c1.Suspect(ctx, "n2", held.Incarnation, "it died")
	must(t, err)
	eventuallySees(t, c1, volume, "Maintenance", false)
	select {
	case <-held.Lost():
	case <-time.After(10 * time.Second):
		t.Fatal("the owner does not know that its hold has ended")
	}
	_, err = c1.Hold(ctx, volume, Hold{Reason: "Maintenance"})
	must(t, err)
}
