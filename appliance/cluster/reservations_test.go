package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestReservations(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	v, err := db.AddVolume(ctx, Volume{Name: "V", WWID: "w"})
	must(t, err)
	_, err = db.CreateTarget(ctx, "t")
	must(t, err)
	lun, err := db.Map(ctx, "t", v.ID, "x", 0)
	must(t, err)
	want := []byte{0, 1, 255}
	var revision int64
	for _, naa := range []string{"3bad", lun.NAA} {
		if r, err := db.LoadReservations(ctx, naa); err != nil || r.Blob != nil || r.Revision != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		revision, err = db.SwapReservations(ctx, naa, 0, want)
		must(t, err)
	}
	must(t, db.SweepReservations(ctx))
	if r, err := db.LoadReservations(ctx, lun.NAA); err != nil || !bytes.Equal(r.Blob, want) || r.Revision != revision {
		t.Fatalf("%+v, %v, want revision %d", r, err, revision)
	}
	if r, err := db.LoadReservations(ctx, "3bad"); err != nil || r.Blob != nil {
		t.Fatalf("an unmapped unit keeps %+v, %v", r, err)
	}
}

// TestReservationsSwap has several writers count up one record; a lost update would show.
func TestReservationsSwap(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	_, err := db.SwapReservations(ctx, "3a", 7, nil)
	wantErr(t, err, ErrConflict)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for done := 0; done < 20; {
				r, err := db.LoadReservations(ctx, "3a")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(r.Blob))
				_, err = db.SwapReservations(ctx, "3a", r.Revision, []byte(strconv.Itoa(n+1)))
				switch {
				case err == nil:
					done++
				case !errors.Is(err, ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if r, err := db.LoadReservations(ctx, "3a"); err != nil || string(r.Blob) != "80" {
		t.Fatalf("%s, %v", r.Blob, err)
	}
}

func TestReservationsWatch(t *testing.T) {
	db, ctx := open(t, t.TempDir()), t.Context()
	first, err := db.SwapReservations(ctx, "3a", 0, []byte("one"))
	must(t, err)
	ctx, cancel := context.WithCancel(ctx)
	seen, ended := make(chan string, 16), make(chan error, 1)
	go func() {
		ended <- db.WatchReservations(ctx, func(naa string, blob []byte, revision int64) {
			seen <- fmt.Sprintf("%s %s %d", naa, blob, revision)
		})
	}()
	expect := func(naa, blob string, revision int64) {
		t.Helper()
		select {
		case got := <-seen:
			if want := fmt.Sprintf("%s %s %d", naa, blob, revision); got != want {
				t.Fatalf("saw %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("saw nothing")
		}
	}
	expect("3a", "one", first)
	second, err := db.SwapReservations(ctx, "3a", first, []byte("two"))
	must(t, err)
	expect("3a", "two", second)
	third, err := db.SwapReservations(ctx, "3b", 0, []byte("b"))
	must(t, err)
	expect("3b", "b", third)
	must(t, db.SweepReservations(ctx))
	expect("3a", "", third+1)
	expect("3b", "", third+2)
	cancel()
	wantErr(t, <-ended, context.Canceled)
}
