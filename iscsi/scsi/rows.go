package scsi

var primaryCommands []row
var inquiryCommands []row
var reportCommands []row
var logCommands []row
var readCommands []row
var writeCommands []row
var verifyCommands []row
var compareCommands []row
var writeSameCommands []row
var provisioningCommands []row
var cacheCommands []row
var capacityCommands []row
var diagnosticCommands []row
