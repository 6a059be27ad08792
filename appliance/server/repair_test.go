package server

import (
	"context"
	"testing"

	"lunar/appliance/api"
)

// RepairVolume implements Repairs; the volume "broken" fails after its first step.
func (f *fake) RepairVolume(_ context.Context, name string, r api.Repair, tell func(api.RepairStep) error) (api.RepairResult, error) {
	if err := f.note("repair %s %+v", name, r); err != nil {
		return api.RepairResult{}, err
	}
	if err := tell(api.RepairStep{Phase: "check", Text: "Phase 1"}); err != nil {
		return api.RepairResult{}, err
	}
	if name == "broken" {
		return api.RepairResult{}, api.Errorf(api.Refused, "it is damaged").WithHint("--wait")
	}
	return api.RepairResult{Volume: name, Damaged: true}, nil
}

// A repair tells its steps, and its end: the result, or what went wrong.
func TestRepairTellsItsSteps(t *testing.T) {
	c, f, _ := serve(t)
	var steps []api.RepairStep
	step := func(s api.RepairStep) { steps = append(steps, s) }
	r, err := c.RepairVolume(t.Context(), "A", api.Repair{Trim: true, Defragment: []string{"A/b"}}, step)
	if err != nil || r.Volume != "A" || !r.Damaged || len(steps) != 1 || steps[0].Text != "Phase 1" {
		t.Fatalf("%+v, %+v, %v", r, steps, err)
	}
	if _, err = c.RepairVolume(t.Context(), "broken", api.Repair{}, step); api.CodeOf(err) != api.Refused || err.Error() != "it is damaged; --wait" {
		t.Fatal(err)
	}
	f.err = api.Errorf(api.NotFound, "no such volume")
	if _, err = c.RepairVolume(t.Context(), "A", api.Repair{}, step); api.CodeOf(err) != api.NotFound {
		t.Fatal(err)
	}
}
