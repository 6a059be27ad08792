package web

import (
	"encoding/json"
	"errors"

	"lunar/appliance/api"
)

// call is a call of the control API that browsers have.
type call struct {
	pattern string
	role    string // that is needed
	stream  bool   // it lasts
}

// calls is the whole table. What is not in it browsers cannot reach: what gives secrets out (cluster save, tokens), what
// runs commands on a node (hooks), what makes or unmakes a cluster or a volume, and what needs a socket of the node.
var calls = []call{
	{"GET /v1/version", api.WebReadOnly, false},
	{"GET /v1/cluster", api.WebReadOnly, false},
	{"GET /v1/nodes", api.WebReadOnly, false},
	{"GET /v1/nodes/{node}", api.WebReadOnly, false},
	{"GET /v1/networks", api.WebReadOnly, false},
	{"GET /v1/heartbeats", api.WebReadOnly, false},
	{"GET /v1/volumes", api.WebReadOnly, false},
	{"GET /v1/volumes/{volume}", api.WebReadOnly, false},
	{"GET /v1/images", api.WebReadOnly, false},
	{"GET /v1/images/{volume}/{path}", api.WebReadOnly, false},
	{"GET /v1/snapshots", api.WebReadOnly, false},
	{"GET /v1/targets", api.WebReadOnly, false},
	{"GET /v1/sessions", api.WebReadOnly, false},
	{"GET /v1/jobs", api.WebReadOnly, false},
	{"GET /v1/backups", api.WebReadOnly, false},
	{"GET /v1/top", api.WebReadOnly, true},
	{"GET /v1/log", api.WebReadOnly, true},

	{"POST /v1/cluster/validate", api.WebAdmin, false},
	{"POST /v1/nodes/{node}/drain", api.WebAdmin, false},
	{"POST /v1/nodes/{node}/resume", api.WebAdmin, false},
	{"PATCH /v1/networks/{network}", api.WebAdmin, false},
	{"POST /v1/volumes/{volume}/rename", api.WebAdmin, false},
	{"POST /v1/volumes/{volume}/redirect", api.WebAdmin, false},
	{"POST /v1/volumes/{volume}/move", api.WebAdmin, false},
	{"POST /v1/images", api.WebAdmin, false},
	{"PATCH /v1/images/{volume}/{path}", api.WebAdmin, false},
	{"DELETE /v1/images/{volume}/{path}", api.WebAdmin, false},
	{"POST /v1/snapshots", api.WebAdmin, false},
	{"DELETE /v1/snapshots/{volume}/{name}", api.WebAdmin, false},
	{"POST /v1/snapshots/{volume}/{name}/revert", api.WebAdmin, false},
	{"POST /v1/targets", api.WebAdmin, false},
	{"DELETE /v1/targets/{target}", api.WebAdmin, false},
	{"POST /v1/targets/{target}/luns", api.WebAdmin, false},
	{"DELETE /v1/targets/{target}/luns/{lun}", api.WebAdmin, false},
	{"PUT /v1/targets/{target}/allow/{initiator}", api.WebAdmin, false},
	{"DELETE /v1/targets/{target}/allow/{initiator}", api.WebAdmin, false},
	{"POST /v1/backups", api.WebAdmin, false},
	{"DELETE /v1/backups/{name}", api.WebAdmin, false},
}

// narrow refuses bodies of calls that ask for what browsers do not have.
var narrow = map[string]func([]byte) error{"POST /v1/backups": narrowBackup}

// narrowBackup refuses a backup that lasts as long as its caller's connection, or that opens a port and gives keys to it.
func narrowBackup(body []byte) error {
	var b api.BeginBackup
	if err := json.Unmarshal(body, &b); err != nil {
		return err
	}
	if b.Attached || b.Listen != "" {
		return errors.New("a backup with attached or listen is begun with lunarctl")
	}
	return nil
}

// Patterns are those of the calls of the control API that browsers have.
func Patterns() []string {
	out := make([]string, len(calls))
	for i := range calls {
		out[i] = calls[i].pattern
	}
	return out
}
