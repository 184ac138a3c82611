# Sidekiq. `ruby sidekiq_app.rb` publishes; `sidekiq -r ./sidekiq_app.rb` works.

require "json"
require "sidekiq"

Sidekiq.configure_server do |config|
  # Two lines for each job otherwise.
  config.logger.level = Logger::WARN
end

# Jobs that ran and the sum of their numbers, written to a file a hundred times a second.
class Tally
  def initialize
    @count = @sum = 0
    @lock = Mutex.new
    @file = File.open(File.join(ENV.fetch("PEERS_TALLY"), Process.pid.to_s), "wb")
    Thread.new do
      loop do
        record = @lock.synchronize { [@count, @sum].pack("Q<Q<") }
        @file.pwrite(record, 0)
        sleep 0.01
      end
    end
  end

  def count(n)
    @lock.synchronize do
      @count += 1
      @sum += n
    end
  end
end

class Work
  include Sidekiq::Worker
  # Retries are Sidekiq's default: 25, then the dead set.
  sidekiq_options queue: ENV.fetch("PEERS_QUEUE")

  def perform(job)
    TALLY.count(job["n"])
  end
end

if $PROGRAM_NAME == __FILE__
  jobs = Integer(ENV.fetch("PEERS_JOBS"))
  Sidekiq.redis(&:ping) # connects
  began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  (0...jobs).each_slice(1000) do |slice|
    args = slice.map { |n| [{"n" => n, "to" => "user-#{n}@example.org", "padding" => "x" * 140}] }
    Sidekiq::Client.push_bulk("class" => Work, "args" => args)
  end
  puts JSON.generate(seconds: Process.clock_gettime(Process::CLOCK_MONOTONIC) - began)
else
  TALLY = Tally.new
end
