package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"

	"lunar/appliance/api"
)

// Cluster is this node's part in the cluster. Errors are *api.Error where the user can do something.
type Cluster interface {
	Cluster(ctx context.Context) (api.Cluster, error)
	InitCluster(ctx context.Context) (api.Cluster, error)
	JoinCluster(ctx context.Context, r api.Join) (api.Cluster, error)
	LeaveCluster(ctx context.Context, r api.Leave) error
	NewToken(ctx context.Context, r api.NewToken) (api.Token, error)
	// SaveCluster gives a file of Saved.Bytes bytes, which the caller closes.
	SaveCluster(ctx context.Context) (api.Saved, io.ReadCloser, error)
}

// Nodes manages the cluster's members.
type Nodes interface {
	Nodes(ctx context.Context) ([]api.Node, error)
	Node(ctx context.Context, name string) (api.NodeDetail, error)
	DrainNode(ctx context.Context, name string) (api.Drained, error)
	ResumeNode(ctx context.Context, name string) error
	EvictNode(ctx context.Context, name string, force bool) (api.Evicted, error)
}

func (s *Server) clusterRoutes() []route {
	return []route{
		{"GET /v1/cluster", answer(s.showCluster)},
		{"POST /v1/cluster/init", answer(s.initCluster)},
		{"POST /v1/cluster/join", answerTo(s.joinCluster)},
		{"POST /v1/cluster/leave", performTo(s.leaveCluster)},
		{"POST /v1/cluster/token", answerTo(s.newToken)},
		{"GET /v1/cluster/save", s.saveCluster},

		{"GET /v1/nodes", answer(s.listNodes)},
		{"GET /v1/nodes/{node}", answer(s.showNode)},
		{"POST /v1/nodes/{node}/drain", answer(s.drainNode)},
		{"POST /v1/nodes/{node}/resume", perform(s.resumeNode)},
		{"DELETE /v1/nodes/{node}", answer(s.evictNode)},
	}
}

func (s *Server) showCluster(r *http.Request) (api.Cluster, error) {
	return s.o.Cluster.Cluster(r.Context())
}

func (s *Server) initCluster(r *http.Request) (api.Cluster, error) {
	return s.o.Cluster.InitCluster(r.Context())
}

func (s *Server) joinCluster(r *http.Request, in api.Join) (api.Cluster, error) {
	return s.o.Cluster.JoinCluster(r.Context(), in)
}

func (s *Server) leaveCluster(r *http.Request, in api.Leave) error {
	return s.o.Cluster.LeaveCluster(r.Context(), in)
}

func (s *Server) newToken(r *http.Request, in api.NewToken) (api.Token, error) {
	return s.o.Cluster.NewToken(r.Context(), in)
}

// saveCluster sends the file as it is; its description is a header.
func (s *Server) saveCluster(w http.ResponseWriter, r *http.Request) error {
	saved, body, err := s.o.Cluster.SaveCluster(r.Context())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	about, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(saved.Bytes, 10))
	w.Header().Set(api.SavedHeader, string(about))
	_, err = io.Copy(w, body)
	return err
}

func (s *Server) listNodes(r *http.Request) ([]api.Node, error) { return s.o.Nodes.Nodes(r.Context()) }

func (s *Server) showNode(r *http.Request) (api.NodeDetail, error) {
	return s.o.Nodes.Node(r.Context(), r.PathValue("node"))
}

func (s *Server) drainNode(r *http.Request) (api.Drained, error) {
	return s.o.Nodes.DrainNode(r.Context(), r.PathValue("node"))
}

func (s *Server) resumeNode(r *http.Request) error {
	return s.o.Nodes.ResumeNode(r.Context(), r.PathValue("node"))
}

func (s *Server) evictNode(r *http.Request) (api.Evicted, error) {
	force, err := boolean(r, "force")
	if err != nil {
		return api.Evicted{}, err
	}
	return s.o.Nodes.EvictNode(r.Context(), r.PathValue("node"), force)
}
