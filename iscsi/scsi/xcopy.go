package scsi

var xcopyCommands []row
