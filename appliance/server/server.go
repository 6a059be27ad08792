package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"lunar/appliance/api"
)

// Volumes manages the node's volumes. Errors are *api.Error where the user can do something.
type Volumes interface {
	Repairs

	Volumes(ctx context.Context) ([]api.Volume, error)
	Volume(ctx context.Context, name string) (api.VolumeDetail, error)
	AddVolume(ctx context.Context, r api.AddVolume) (api.Volume, error)
	RenameVolume(ctx context.Context, name, to string) error
	RedirectVolume(ctx context.Context, name string, on bool) error
	MoveVolume(ctx context.Context, name, to string) (api.MovedVolume, error)
	EjectVolume(ctx context.Context, name string) error
}

// Images manages images, each named by its volume and its path inside it.
type Images interface {
	Snapshots

	Images(ctx context.Context, volume string) ([]api.Image, error)
	Image(ctx context.Context, volume, path string) (api.Image, error)
	CreateImage(ctx context.Context, r api.CreateImage) (api.Image, error)
	ChangeImage(ctx context.Context, volume, path string, r api.ChangeImage) (api.Image, error)
	DeleteImage(ctx context.Context, volume, path string, force bool) error
}

// Targets manages iSCSI targets.
type Targets interface {
	Targets(ctx context.Context) ([]api.Target, error)
	CreateTarget(ctx context.Context, name string) (api.Target, error)
	DeleteTarget(ctx context.Context, name string, force bool) error
	Map(ctx context.Context, target string, r api.Map) (api.LUN, error)
	Unmap(ctx context.Context, target string, lun uint16) error
	Allow(ctx context.Context, target, initiator string) error
	Disallow(ctx context.Context, target, initiator string) error
	SetCHAP(ctx context.Context, target string, r api.SetCHAP) error
}

// Sessions tells who is logged in.
type Sessions interface {
	Sessions(ctx context.Context) (api.Sessions, error)
}

// Events reads the operation log: fn gets each event, oldest first, and with follow the coming ones
// until ctx ends.
type Events interface {
	Events(ctx context.Context, follow bool, fn func(api.Event) error) error
}

// Jobs tells which long operations are under way.
type Jobs interface {
	Jobs(ctx context.Context) ([]api.Job, error)
}

var errMissing = errors.New("server: every field of Options is needed")

// Options for New; every field is needed.
type Options struct {
	Volumes   Volumes
	Images    Images
	Targets   Targets
	Sessions  Sessions
	Events    Events
	Jobs      Jobs
	Cluster   Cluster
	Nodes     Nodes
	Networks  Networks
	Transfers Transfers
	Backups   Backups
	Traces    Traces       // nil: I/O is not traced
	Lines     Lines        // nil: a node's part in a volume is not switched
	Web       Web          // nil: nobody signs in
	Stats     func() Stats // for the metrics; called at each scrape
	Version   api.Version
	Log       *slog.Logger
}

// Validate checks that no field is missing.
func (o *Options) Validate() error {
	for _, part := range []any{o.Volumes, o.Images, o.Targets, o.Sessions, o.Events, o.Jobs, o.Cluster, o.Nodes, o.Networks, o.Transfers, o.Backups} {
		if part == nil {
			return errMissing
		}
	}
	if o.Stats == nil || o.Log == nil {
		return errMissing
	}
	return nil
}

// Server is the control API of one node.
type Server struct {
	o       Options
	mux     *http.ServeMux
	metrics *metrics
}

// New makes a Server.
func New(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Server{o: o, mux: http.NewServeMux(), metrics: newMetrics(o.Stats, o.Version)}
	for _, r := range s.allRoutes() {
		s.mux.Handle(r.pattern, s.instrument(r))
	}
	s.mux.HandleFunc("/", s.unknown)
	return s, nil
}

// Handler is the control API, for the unix socket.
func (s *Server) Handler() http.Handler { return s.mux }

// Metrics is the Prometheus endpoint, /metrics.
func (s *Server) Metrics() http.Handler { return s.metrics.handler() }
