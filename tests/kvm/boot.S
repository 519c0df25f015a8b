/*
 * Boot sector: writes swapped-out memory to disk and reads it back
 *
 * Runs in real mode and does its disk I/O by INT 13h, so the firmware's
 * virtio-blk driver hands our buffers to QEMU as they are.  Before each step
 * it tells the test at the serial port what it is about to do, and waits for
 * an answer; meanwhile the test evicts memory.
 *
 *   'W'  OUT (128 KiB at 0x20000) is filled and will be written to disk
 *   'R'  the disk will be read into IN (128 KiB at 0x40000)
 *   'D'  IN and OUT were right; OUT was changed; the disk will be read again
 *   'K'  all was right: next round
 *   'X'  found something wrong; 'E' the firmware reported an error
 *
 * Every answer goes on, but 'q' which ends the machine.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */
        .set    COM1, 0x3f8
        .set    EXIT_PORT, 0xf4
        .set    OUT, 0x2000             /* segments */
        .set    IN, 0x4000
        .set    LENGTH, 0x2000
        .set    PAGE, 0x100
        .set    PIECE, 0x800            /* one request: 64 sectors */
        .set    LBA, 64

        .code16
        .globl  _start
_start:
        ljmp    $0, $begin
begin:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp
        cld
        mov     %dl, drive

round:
        incw    number
        mov     $OUT, %bx
1:      call    fill
        add     $PAGE, %bx
        cmp     $OUT + LENGTH, %bx
        jb      1b

        mov     $'W', %al
        call    ask
        mov     $0x4300, %ax
        mov     $OUT, %bx
        call    transfer

        mov     $'R', %al
        call    ask
        call    read_and_check
        mov     $OUT, %bx
        call    check

        mov     $OUT, %bx               /* a part of each page */
1:      mov     %bx, %es
        notw    %es:1000
        add     $PAGE, %bx
        cmp     $OUT + LENGTH, %bx
        jb      1b
        mov     $'D', %al
        call    ask
        call    read_and_check

        mov     $'K', %al
        call    ask
        jmp     round

read_and_check:
        mov     $0x4200, %ax
        mov     $IN, %bx
        call    transfer
        mov     $IN, %bx
        /* fall through */

/* The LENGTH from segment %bx on must hold the pattern. */
check:
        lea     LENGTH(%bx), %bp
1:      mov     %bx, %es
        call    seed
        xor     %di, %di
        mov     $2048, %cx
2:      scasw
        jne     wrong
        call    next
        loop    2b
        add     $PAGE, %bx
        cmp     %bp, %bx
        jb      1b
        ret

/* Fill the page at segment %bx. */
fill:
        mov     %bx, %es
        call    seed
        xor     %di, %di
        mov     $2048, %cx
1:      stosw
        call    next
        loop    1b
        ret

/* %ax: where the pattern of the page at segment %bx begins in this round */
seed:
        mov     %bh, %al
        and     $0x1f, %al
        mov     number, %ah
        ret

next:
        imul    $25173, %ax, %ax
        add     $13849, %ax
        ret

/* INT 13h function %ax for the LENGTH from segment %bx on */
transfer:
        movw    $LBA, packet_lba
        lea     LENGTH(%bx), %bp
1:      mov     %bx, packet_segment
        mov     $packet, %si
        mov     drive, %dl
        push    %ax
        push    %bx
        push    %bp
        int     $0x13
        pop     %bp
        pop     %bx
        pop     %ax
        mov     $'E', %cl
        jc      report
        addw    $PIECE / 32, packet_lba
        add     $PIECE, %bx
        cmp     %bp, %bx
        jb      1b
        ret

wrong:
        mov     $'X', %cl
report:
        mov     %cl, %al
        call    ask
        jmp     quit

/* Send %al, wait for the answer. */
ask:
        mov     $COM1, %dx
        out     %al, %dx
1:      mov     $COM1 + 5, %dx
        in      %dx, %al
        test    $1, %al
        jz      1b
        mov     $COM1, %dx
        in      %dx, %al
        cmp     $'q', %al
        je      quit
        ret

quit:
        mov     $EXIT_PORT, %dx
        mov     $0x10, %al
        out     %al, %dx
        hlt

drive:  .byte   0
number: .word   0
        .balign 4
packet:
        .byte   16, 0
        .word   PIECE / 32
        .word   0
packet_segment:
        .word   0
packet_lba:
        .quad   0

        .org    510
        .word   0xaa55
