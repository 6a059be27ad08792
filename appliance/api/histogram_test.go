package api

import (
	"testing"
	"time"
)

func TestHistogramQuantile(t *testing.T) {
	var h Histogram
	for range 99 {
		h.Add(one(100 * time.Microsecond))
	}
	h.Add(one(10 * time.Millisecond))
	if p := h.Quantile(0.5); p < 65536 || p > 131072 {
		t.Errorf("median %v, want within the class of 100µs", p)
	}
	if p := h.Quantile(1); p < 8*time.Millisecond || p > 17*time.Millisecond {
		t.Errorf("maximum %v, want within the class of 10ms", p)
	}
	if (&Histogram{}).Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
}

func one(d time.Duration) *Histogram {
	h := &Histogram{Count: 1, Sum: d}
	h.Buckets[Bucket(d)] = 1
	return h
}

func TestBucketEnds(t *testing.T) {
	for i := range HistogramBuckets - 1 {
		end := BucketEnd(i)
		if Bucket(end-1) != i || Bucket(end) != i+1 {
			t.Errorf("class %d: its end %v is in classes %d and %d", i, end, Bucket(end-1), Bucket(end))
		}
	}
	if Bucket(-1) != 0 || Bucket(1<<62) != HistogramBuckets-1 {
		t.Error("what is outside is not in the first or last class")
	}
}
