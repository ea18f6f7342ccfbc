// Package watermillkgo is a Watermill Publisher and Subscriber for Kafka, built
// on franz-go.
//
// The Publisher is synchronous: Publish returns when all in-sync replicas have
// every message, or with an error.
//
// The Subscriber reads partitions concurrently and keeps the order of each. By
// default it hands out one message of a partition at a time; with MaxInFlight
// it hands out several, never two of one key. A nacked message is handed out
// again in its place: nothing of its key, nor by default of its partition, gets
// ahead of it. What is committed is always the longest run of messages acked
// from the partition's beginning on, so that nothing unacked is lost, whatever
// crashes: delivery is at least once.
//
// It needs franz-go, Watermill and the standard library.
package watermillkgo
