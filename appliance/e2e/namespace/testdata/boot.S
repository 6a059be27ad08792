# A guest that does nothing but write: numbered records of one sector, one after the other, round and round.
# as --32 boot.S -o boot.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary boot.o -o boot.bin
.code16
.globl _start
.set buffer, 0x8000
_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	sti
	cld
	movb %dl, drive
	movw $buffer, %di
	movw $256, %cx
	rep stosw
	movl $0x4f434552, buffer        # "RECO"
	movl $0x00004452, buffer+4      # "RD"
next:
	incl buffer+8
	movl buffer+8, %eax
	andl $1023, %eax
	addl $64, %eax
	movl %eax, lba
	movw $packet, %si
	movb drive, %dl
	movw $0x4300, %ax               # extended write
	int $0x13
	jnc next
failed:
	movw $0x3f8, %dx
	movb $'E', %al
	outb %al, %dx
	hlt
	jmp failed
packet:
	.byte 16, 0
	.word 1, buffer, 0
lba:
	.long 0, 0
drive:
	.byte 0
	.org 510
	.word 0xaa55
