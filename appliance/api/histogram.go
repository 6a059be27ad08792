package api

import (
	"math/bits"
	"time"
)

// HistogramBuckets is how many classes of durations a Histogram counts: class 0 has those below 1,024 ns, class i those
// of 2^(i+9) up to 2^(i+10) ns, the last one also all above.
const HistogramBuckets = 28

// Histogram counts durations by powers of two.
type Histogram struct {
	Count   uint64                   `json:"count"`
	Sum     time.Duration            `json:"sumNs"`
	Buckets [HistogramBuckets]uint64 `json:"buckets"`
}

// Bucket is the class of a duration.
func Bucket(d time.Duration) int {
	return min(max(bits.Len64(uint64(max(d, 0)))-10, 0), HistogramBuckets-1)
}

// BucketEnd is the duration below which those of class i are; it is the last one's too, though that has no end.
func BucketEnd(i int) time.Duration { return 1 << (i + 10) }

// Add counts all of o too.
func (h *Histogram) Add(o *Histogram) {
	h.Count += o.Count
	h.Sum += o.Sum
	for i, n := range o.Buckets {
		h.Buckets[i] += n
	}
}

// Mean is 0 without any.
func (h *Histogram) Mean() time.Duration {
	if h.Count == 0 {
		return 0
	}
	return h.Sum / time.Duration(h.Count)
}

// Quantile is the duration that a share of all, 0 to 1, does not exceed, taken as spread evenly within its class; so it is
// right to a factor of two. It is 0 without any.
func (h *Histogram) Quantile(share float64) time.Duration {
	rank, below := share*float64(h.Count), 0.0
	for i, n := range h.Buckets {
		if n == 0 {
			continue
		}
		if below+float64(n) >= rank {
			from, to := time.Duration(0), BucketEnd(i)
			if i > 0 {
				from = BucketEnd(i - 1)
			}
			return from + time.Duration(float64(to-from)*max(rank-below, 0)/float64(n))
		}
		below += float64(n)
	}
	return 0
}
