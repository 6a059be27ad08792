// Package terms has the tests of several nodes on one LUN through many terms of coordinators: each
// node has its own engine, volume and loop device over one backing file, which is its path to the LUN.
package terms
