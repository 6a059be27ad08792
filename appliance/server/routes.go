package server

import (
	"io"
	"net/http"
	"slices"
	"strconv"

	"lunar/appliance/api"
)

// route is a row of the table of calls.
type route struct {
	pattern string
	serve   func(w http.ResponseWriter, r *http.Request) error
}

// routes is the whole API.
func (s *Server) routes() []route {
	return append(slices.Concat(s.repairRoutes(), s.clusterRoutes(), s.networkRoutes(), s.transferRoutes(), s.backupRoutes()), []route{
		{"GET /v1/version", answer(s.version)},

		{"GET /v1/volumes", answer(s.listVolumes)},
		{"POST /v1/volumes", answerTo(s.addVolume)},
		{"GET /v1/volumes/{volume}", answer(s.showVolume)},
		{"DELETE /v1/volumes/{volume}", perform(s.ejectVolume)},
		{"POST /v1/volumes/{volume}/rename", performTo(s.renameVolume)},
		{"POST /v1/volumes/{volume}/redirect", performTo(s.redirectVolume)},
		{"POST /v1/volumes/{volume}/move", answerTo(s.moveVolume)},

		{"GET /v1/images", answer(s.listImages)},
		{"POST /v1/images", answerTo(s.createImage)},
		{"GET /v1/images/{volume}/{path}", answer(s.showImage)},
		{"PATCH /v1/images/{volume}/{path}", answerTo(s.changeImage)},
		{"DELETE /v1/images/{volume}/{path}", perform(s.deleteImage)},

		{"GET /v1/targets", answer(s.listTargets)},
		{"POST /v1/targets", answerTo(s.createTarget)},
		{"DELETE /v1/targets/{target}", perform(s.deleteTarget)},
		{"POST /v1/targets/{target}/luns", answerTo(s.mapLUN)},
		{"DELETE /v1/targets/{target}/luns/{lun}", perform(s.unmapLUN)},
		{"PUT /v1/targets/{target}/allow/{initiator}", perform(s.allow)},
		{"DELETE /v1/targets/{target}/allow/{initiator}", perform(s.disallow)},
		{"PUT /v1/targets/{target}/chap", performTo(s.setCHAP)},

		{"GET /v1/sessions", answer(s.listSessions)},
		{"GET /v1/jobs", answer(s.listJobs)},
		{"GET /v1/log", s.streamLog},
	}...)
}

func (s *Server) version(*http.Request) (api.Version, error) { return s.o.Version, nil }

func (s *Server) listVolumes(r *http.Request) ([]api.Volume, error) {
	return s.o.Volumes.Volumes(r.Context())
}

func (s *Server) addVolume(r *http.Request, in api.AddVolume) (api.Volume, error) {
	return s.o.Volumes.AddVolume(r.Context(), in)
}

func (s *Server) showVolume(r *http.Request) (api.VolumeDetail, error) {
	return s.o.Volumes.Volume(r.Context(), r.PathValue("volume"))
}

func (s *Server) ejectVolume(r *http.Request) error {
	return s.o.Volumes.EjectVolume(r.Context(), r.PathValue("volume"))
}

func (s *Server) renameVolume(r *http.Request, in api.RenameVolume) error {
	return s.o.Volumes.RenameVolume(r.Context(), r.PathValue("volume"), in.Name)
}

func (s *Server) redirectVolume(r *http.Request, in api.RedirectVolume) error {
	return s.o.Volumes.RedirectVolume(r.Context(), r.PathValue("volume"), in.On)
}

func (s *Server) moveVolume(r *http.Request, in api.MoveVolume) (api.MovedVolume, error) {
	return s.o.Volumes.MoveVolume(r.Context(), r.PathValue("volume"), in.To)
}

func (s *Server) listImages(r *http.Request) ([]api.Image, error) {
	return s.o.Images.Images(r.Context(), r.FormValue("volume"))
}

func (s *Server) createImage(r *http.Request, in api.CreateImage) (api.Image, error) {
	return s.o.Images.CreateImage(r.Context(), in)
}

func (s *Server) showImage(r *http.Request) (api.Image, error) {
	return s.o.Images.Image(r.Context(), r.PathValue("volume"), r.PathValue("path"))
}

func (s *Server) changeImage(r *http.Request, in api.ChangeImage) (api.Image, error) {
	return s.o.Images.ChangeImage(r.Context(), r.PathValue("volume"), r.PathValue("path"), in)
}

func (s *Server) deleteImage(r *http.Request) error {
	force, err := boolean(r, "force")
	if err != nil {
		return err
	}
	return s.o.Images.DeleteImage(r.Context(), r.PathValue("volume"), r.PathValue("path"), force)
}

func (s *Server) listTargets(r *http.Request) ([]api.Target, error) {
	return s.o.Targets.Targets(r.Context())
}

func (s *Server) createTarget(r *http.Request, in api.CreateTarget) (api.Target, error) {
	return s.o.Targets.CreateTarget(r.Context(), in.Name)
}

func (s *Server) deleteTarget(r *http.Request) error {
	force, err := boolean(r, "force")
	if err != nil {
		return err
	}
	return s.o.Targets.DeleteTarget(r.Context(), r.PathValue("target"), force)
}

func (s *Server) mapLUN(r *http.Request, in api.Map) (api.LUN, error) {
	return s.o.Targets.Map(r.Context(), r.PathValue("target"), in)
}

func (s *Server) unmapLUN(r *http.Request) error {
	lun, err := strconv.ParseUint(r.PathValue("lun"), 10, 16)
	if err != nil {
		return api.Errorf(api.Invalid, "%q is not a LUN", r.PathValue("lun"))
	}
	return s.o.Targets.Unmap(r.Context(), r.PathValue("target"), uint16(lun))
}

func (s *Server) allow(r *http.Request) error {
	return s.o.Targets.Allow(r.Context(), r.PathValue("target"), r.PathValue("initiator"))
}

func (s *Server) disallow(r *http.Request) error {
	return s.o.Targets.Disallow(r.Context(), r.PathValue("target"), r.PathValue("initiator"))
}

func (s *Server) setCHAP(r *http.Request, in api.SetCHAP) error {
	return s.o.Targets.SetCHAP(r.Context(), r.PathValue("target"), in)
}

func (s *Server) listSessions(r *http.Request) (api.Sessions, error) {
	return s.o.Sessions.Sessions(r.Context())
}

func (s *Server) listJobs(r *http.Request) ([]api.Job, error) { return s.o.Jobs.Jobs(r.Context()) }

func boolean(r *http.Request, name string) (bool, error) {
	text := r.FormValue(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, api.Errorf(api.Invalid, "%s=%q is neither true nor false", name, text)
	}
	return v, nil
}

// streamLog sends a JSON line per event, each at once.
func (s *Server) streamLog(w http.ResponseWriter, r *http.Request) error {
	follow, err := boolean(r, "follow")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := lineWriter{w: w, flush: http.NewResponseController(w).Flush, volume: r.FormValue("volume")}
	return s.o.Events.Events(r.Context(), follow, lines.send)
}

// lineWriter sends the events of one volume, or of all.
type lineWriter struct {
	w      io.Writer
	flush  func() error
	volume string // empty: all
}

func (l *lineWriter) send(e api.Event) error {
	if l.volume != "" && e.Volume != l.volume {
		return nil
	}
	if err := encode(l.w, e); err != nil {
		return err
	}
	return l.flush()
}
